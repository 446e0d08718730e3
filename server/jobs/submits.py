"""Submits that arrive together are stored together.

`accept` takes those to which one look at the database finds no objection. Whatever is left
open (a fork, a dataset, a secret, a limit on storage, a key that was used before, anything to refuse) is for
service.submit, in a transaction of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from powermean.allowed_models import AllowedModels, allowed_model
from powermean.contracts.data import JsonlSource
from powermean.contracts.job import JobSpec
from powermean.contracts.names import VALIDATE_TASK
from server import outbox, usage
from server.audit import journal
from server.db.inserts import insert_those_new
from server.db.models import Job
from server.db.session import Database, database_now
from server.identity.callers import Caller
from server.jobs import priorities
from server.jobs.batched_writes import LOCK_MS, BatchedWrites
from server.jobs.events import first_events
from server.jobs.service import ONE_OF_A_KEY, Submitted, new_row
from server.jobs.states import summary_data
from server.jobs.views import job_view


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
    """Store those to which there is no objection; None: service.submit has to look closer."""
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
    return answers


class Submits:
    """The line of submits."""

    def __init__(self, database: Database, allowed: AllowedModels) -> None:
        self._allowed = allowed
        self._line: BatchedWrites[Submission, Submitted] = BatchedWrites(
            "submits", database, lambda session, wanted: accept(session, wanted, allowed)
        )

    async def submit(self, submission: Submission) -> Submitted | None:
        """The job; None: service.submit has to look closer.

        Raises what Database.write raises.
        """
        return await self._line.store(submission) if submission.usual(self._allowed) else None

    def close(self) -> None:
        """End the line when it has done what waits; from now on each goes alone."""
        self._line.close()
