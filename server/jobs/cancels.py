"""Cancels that arrive together, of jobs that no node has ever had: they end together.

Whatever else there is to do (an attempt to stop, files to remove, a job that has ended already) is for
service.cancel, in a transaction of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from sqlalchemy import Table, bindparam, select, update
from sqlalchemy.orm import Session

from powermean.contracts.api import Job as JobView
from powermean.contracts.api import JobState
from server import outbox
from server.audit import journal
from server.db.models import Job
from server.db.session import Database, changes, database_now
from server.identity.callers import Caller
from server.jobs.batched_writes import LOCK_MS, BatchedWrites
from server.jobs.events import state_events
from server.jobs.states import summary_data
from server.jobs.views import job_view

_JOBS = cast(Table, Job.__table__).c
# Whoever holds a job is about to change it: that cancel waits for its turn alone, and holds up no other.
_WAITING = (
    select(_JOBS.id, _JOBS.state, _JOBS.project_id, _JOBS.created_by)
    .where(
        _JOBS.id.in_(bindparam("ids", expanding=True)),
        _JOBS.state.in_((JobState.VALIDATING, JobState.QUEUED, JobState.PAUSED)),
        _JOBS.attempt == 0,
        _JOBS.cancel_requested.is_(False),
        _JOBS.deleted_at.is_(None),
    )
    .with_for_update(skip_locked=True)
)
_END = (
    update(Job)
    .where(Job.id.in_(bindparam("ids", expanding=True)))
    .values(
        state=JobState.CANCELLED,
        phase=None,
        cancel_requested=True,
        pause_requested=False,
        not_before=None,
        seq=Job.seq + 1,
        finished_at=bindparam("now"),
    )
    .returning(Job)
    .execution_options(synchronize_session=False, populate_existing=True)
)


@dataclass(frozen=True)
class Cancellation:
    """What service.cancel takes, and the request's record for the audit log."""

    caller: Caller
    job_id: str
    record: journal.Record | None = None

    def may_end(self, project: str, owner: str) -> bool:
        """Whether the caller may cancel such a job."""
        visible = self.caller.visible
        return (visible is None or project in visible) and self.caller.may("job.change", project, owner)


Cancels = BatchedWrites[Cancellation, JobView]


def accept(session: Session, wanted: Sequence[Cancellation]) -> list[JobView | None]:
    """Cancel the jobs that only wait; None: service.cancel has to look closer."""
    now = database_now(session, LOCK_MS)
    found = session.connection().execute(_WAITING, {"ids": list({one.job_id for one in wanted})})
    waiting = {row.id: row for row in found}
    accepted = [
        (row := waiting.get(one.job_id)) is not None and one.may_end(row.project_id, row.created_by)
        for one in wanted
    ]
    ids = list({one.job_id for one, right in zip(wanted, accepted, strict=True) if right})
    if not ids:
        return [None] * len(wanted)
    ended = session.scalars(_END, {"ids": ids, "now": now}).all()
    outbox.settle_all(session, ids, now)
    state_events(session, [(job, summary_data(job)) for job in ended], now)
    changes(session).plan |= any(waiting[job_id].state == JobState.QUEUED for job_id in ids)
    views = {job.id: job_view(job, None) for job in ended}
    return [views[one.job_id] if right else None for one, right in zip(wanted, accepted, strict=True)]


def line_of_cancels(database: Database) -> Cancels:
    """Where cancels gather."""
    return BatchedWrites("cancels", database, accept)
