"""Submits that arrive together are stored together: seven calls to the database for all, not for each.

`accept` takes those that nothing speaks against as far as one look at the database can say. Whatever is left
open (a fork, a dataset, a secret, a limit on storage, a key that was used before, anything to refuse) is for
service.submit, in a transaction of its own.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from sqlalchemy.orm import Session

from powermean.allowed_models import AllowedModels, allowed_model
from powermean.contracts.data import JsonlSource
from powermean.contracts.job import JobSpec
from powermean.contracts.names import VALIDATE_TASK
from powermean.errors import PowermeanError
from server import outbox, usage
from server.audit import journal
from server.db.models import Job
from server.db.session import Database, database_now, insert_those_new
from server.identity.callers import Caller
from server.jobs import priorities
from server.jobs.events import first_events
from server.jobs.service import ONE_OF_A_KEY, Submitted, new_row
from server.jobs.states import summary_data
from server.jobs.views import job_view

MOST = 64  # submits in a transaction

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


def accept(
    session: Session, submissions: Sequence[Submission], allowed: AllowedModels
) -> list[Submitted | None]:
    """Store those that nothing speaks against; None: service.submit has to look closer."""
    answers: list[Submitted | None] = [None] * len(submissions)
    now = database_now(session)
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
    ordered = sorted(rows.values(), key=lambda row: row["idempotency_key"] or "")
    new = insert_those_new(session, Job, ordered, unique=ONE_OF_A_KEY)
    jobs = {place: Job(**row) for place, row in rows.items() if row["id"] in new}
    if not jobs:
        return answers
    outbox.owe_all(session, VALIDATE_TASK, None, new, now)
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
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="submits")
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Submission, asyncio.Future[Submitted | None]]] = deque()
        self._at_work = False

    async def submit(self, submission: Submission) -> Submitted | None:
        """The job; None: service.submit has to look closer.

        Raises what Database.write raises.
        """
        answer: asyncio.Future[Submitted | None] = asyncio.get_running_loop().create_future()
        with self._lock:
            self._waiting.append((submission, answer))
            idle, self._at_work = not self._at_work, True
        if idle:
            self._thread.submit(self._work)
        return await answer

    def close(self) -> None:
        """End the thread when it has done what waits."""
        self._thread.shutdown()

    def _work(self) -> None:
        while batch := self._next():
            error, answers = self._store([submission for submission, _ in batch])
            for (_, answer), found in zip(batch, answers, strict=True):
                with suppress(RuntimeError):  # its loop is closed: nobody waits any more
                    answer.get_loop().call_soon_threadsafe(_deliver, answer, found, error)

    def _next(self) -> list[tuple[Submission, asyncio.Future[Submitted | None]]]:
        with self._lock:
            batch = [self._waiting.popleft() for _ in range(min(MOST, len(self._waiting)))]
            self._at_work = bool(batch)
            return batch

    def _store(
        self, submissions: Sequence[Submission]
    ) -> tuple[PowermeanError | None, list[Submitted | None]]:
        """One that the database refuses must not take the others with it: then each goes alone."""
        nothing: list[Submitted | None] = [None] * len(submissions)
        try:
            with self._database.write() as session:
                answers = accept(session, submissions, self._allowed)
        except PowermeanError as error:  # the database is busy, full or gone
            return error, nothing
        except Exception:  # whose fault it is turns out when each goes alone
            log.warning("%d submits were not stored together", len(submissions), exc_info=True)
            return None, nothing
        for submission, answer in zip(submissions, answers, strict=True):
            if answer is not None and submission.record is not None:
                submission.record.stored = True
        return None, answers


def _deliver(
    answer: asyncio.Future[Submitted | None], found: Submitted | None, error: PowermeanError | None
) -> None:
    if answer.done():  # the request was given up
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(found)
