"""Submits that arrive together are stored together: a few calls to the database for all, not for each.

`accept` takes those that nothing speaks against as far as one look at the database can say. Whatever is left
open (a fork, a dataset, a secret, a limit on storage, a key that was used before, anything to refuse) is for
service.submit, in a transaction of its own.
"""

import asyncio
import logging
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from sqlalchemy.orm import Session

from powermean.allowed_models import AllowedModels, allowed_model
from powermean.contracts.data import JsonlSource
from powermean.contracts.job import JobSpec
from powermean.contracts.names import VALIDATE_TASK
from powermean.errors import PowermeanError
from server import outbox, usage
from server.audit import journal
from server.db.inserts import insert_those_new
from server.db.models import Job
from server.db.session import Database, DatabaseBusyError, database_now
from server.identity.callers import Caller
from server.jobs import priorities
from server.jobs.events import first_events
from server.jobs.service import ONE_OF_A_KEY, Submitted, new_row
from server.jobs.states import summary_data
from server.jobs.views import job_view

MOST = 64  # submits in a transaction
LOCK_MS = 500  # whoever waits for longer for others' locks goes alone

_Outcome = Submitted | Exception | None

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Submission:
    """What service.submit takes, and the request's record for the audit log."""

    caller: Caller
    spec: JobSpec
    text: str
    idempotency_key: str | None
    record: journal.Record | None = None

    @property
    def project(self) -> str | None:
        """The project it is for, unless the caller has to name one."""
        return self.spec.project or self.caller.default_project

    def usual(self, allowed: AllowedModels) -> bool:
        """Whether it names nothing that has to be looked up for it alone."""
        model = self.spec.model
        alone = model.from_ is not None or self.spec.secrets or isinstance(self.spec.data, JsonlSource)
        return not alone and (model.name is None or allowed_model(model.name, allowed) is not None)

    def may_go_to(self, project: str) -> bool:
        """Whether the caller may submit there."""
        visible = self.caller.visible
        return (visible is None or project in visible) and self.caller.may("job.submit", project)


@dataclass(frozen=True)
class _Waiting:
    submission: Submission
    answer: asyncio.Future[Submitted | None]


def accept(
    session: Session, submissions: Sequence[Submission], allowed: AllowedModels
) -> list[Submitted | None]:
    """Store those that nothing speaks against; None: service.submit has to look closer."""
    answers: list[Submitted | None] = [None] * len(submissions)
    now = database_now(session, LOCK_MS)
    usual = [place for place, one in enumerate(submissions) if one.usual(allowed)]
    projects = usage.without_limit(session, {p for n in usual if (p := submissions[n].project)})
    roles = priorities.roles_for(session, {submissions[place].spec.priority for place in usual})
    rows = {}
    for place in usual:
        one, project = submissions[place], submissions[place].project
        role = roles.get(one.spec.priority)
        if project not in projects or role is None or not one.may_go_to(project):
            continue
        if priorities.may_use(one.caller, project, role):
            rows[place] = new_row(one.caller.person_id, project, one.spec, one.text, one.idempotency_key, now)
    if not rows:
        return answers
    # in one order on all servers, so that none waits for another's keys while that waits for its own
    ordered = sorted(rows.values(), key=lambda row: [row[name] or "" for name in ONE_OF_A_KEY])
    new = insert_those_new(session, Job, ordered, unique=ONE_OF_A_KEY)
    jobs = {place: Job(**row) for place, row in rows.items() if row["id"] in new}
    if not jobs:
        return answers
    outbox.owe_all(session, VALIDATE_TASK, None, [job.id for job in jobs.values()], now)
    first_events(session, [(job, summary_data(job)) for job in jobs.values()])
    for place, job in jobs.items():
        answers[place] = Submitted(job_view(job, None, spec=submissions[place].spec), new=True)
        if (record := submissions[place].record) is not None:
            record.note({"target": job.id, "project": job.project_id}, {})
    records = [record for place in jobs if (record := submissions[place].record) is not None]
    journal.store(session, records)
    return answers


class Submits:
    """The line of submits: one thread takes all that wait, while the next ones gather."""

    def __init__(self, database: Database, allowed: AllowedModels) -> None:
        self._database = database
        self._allowed = allowed
        self._line: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="submits", daemon=True)
        self._thread.start()

    async def submit(self, submission: Submission) -> Submitted | None:
        """The job; None: service.submit has to look closer.

        Raises what Database.write raises.
        """
        if self._closed or not submission.usual(self._allowed):
            return None
        answer: asyncio.Future[Submitted | None] = asyncio.get_running_loop().create_future()
        self._line.put(_Waiting(submission, answer))
        return await answer

    def close(self) -> None:
        """End the thread when it has done what waits; from now on each goes alone."""
        self._closed = True
        self._line.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (first := self._line.get()) is not None:
            batch = [first, *self._others(MOST - 1)]
            try:
                outcomes = self._store([one.submission for one in batch])
            except DatabaseBusyError as error:  # for all the time that those behind have waited
                batch += self._others()
                outcomes = [error] * len(batch)
            except Exception as error:  # noqa: BLE001 - for those who wait: this thread goes on
                outcomes = [error] * len(batch)
            for one, outcome in zip(batch, outcomes, strict=True):
                with suppress(RuntimeError):  # its loop is closed: nobody waits any more
                    one.answer.get_loop().call_soon_threadsafe(_deliver, one.answer, outcome)

    def _others(self, most: int | None = None) -> list[_Waiting]:
        """Who waits, too."""
        found: list[_Waiting] = []
        while most is None or len(found) < most:
            try:
                one = self._line.get_nowait()
            except Empty:
                break
            if one is None:
                self._line.put(None)  # the end comes after these
                break
            found.append(one)
        return found

    def _store(self, submissions: Sequence[Submission]) -> list[_Outcome]:
        """Raises what the commit raises, and PowermeanError: the database is busy, full or gone."""
        accepted = False
        try:
            with self._database.write() as session:
                answers = accept(session, submissions, self._allowed)
                accepted = True
        except Exception as error:
            if accepted or isinstance(error, PowermeanError):
                raise  # they may be stored: nobody may store them again
            # whose fault it is turns out when each goes alone
            log.warning("%d submits were not stored together", len(submissions), exc_info=True)
            return [None] * len(submissions)
        for submission, answer in zip(submissions, answers, strict=True):
            if answer is not None and submission.record is not None:
                submission.record.stored = True
        return list(answers)


def _deliver(answer: asyncio.Future[Submitted | None], outcome: _Outcome) -> None:
    if answer.done():  # the request was given up
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
