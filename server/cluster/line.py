"""The line of queued jobs, kept between the scheduler's turns so that a turn reads only what has changed.

The database is the truth, and whoever starts a job looks at it again: what stands here was so a moment ago.
Commits say which jobs to read again, those of other servers by way of Redis. That may fail, so the whole line
is read now and then, as a new leader does.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from server.cluster.demand import waiting_job
from server.cluster.sharing import priorities
from server.db.models import Allocation, Attempt, AttemptMember, Job
from server.db.session import Changes, Database
from server.jobs import limits
from server.jobs.members import LAPSED
from server.placement.state import NOBODY, WaitingJob

REFRESH_S = 5.0  # the whole line is read so often
MANY = 500  # changed jobs from which on the whole line is read


class Queued(NamedTuple):
    """A queued job."""

    job: WaitingJob
    phase: str | None
    not_before: datetime | None

    def is_due(self, now: datetime) -> bool:
        """Whether its pause after a failure is over."""
        return self.not_before is None or self.not_before <= now


class Line:
    """The queued jobs. The scheduler's thread reads it; any thread may commit changes."""

    def __init__(self, database: Database) -> None:
        self._queued: dict[str, Queued] = {}
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._whole_at = float("-inf")  # when all of it was last read
        self._values: dict[str, int] = {}  # of the priorities
        database.listen(self._note)

    def forget(self) -> None:
        """Read all of it next time."""
        self._whole_at = float("-inf")
        with self._lock:
            self._changed.clear()

    def recheck(self, job_ids: Iterable[str]) -> None:
        """Read these jobs again next time."""
        with self._lock:
            self._changed.update(job_ids)

    def set_phases(self, phases: Mapping[str, str]) -> None:
        """The rows of these jobs now say what they wait for."""
        for job_id in self._queued.keys() & phases.keys():
            self._queued[job_id] = self._queued[job_id]._replace(phase=phases[job_id])

    def read(self, session: Session, now: datetime) -> list[Queued]:
        """The jobs whose pause is over, in order of submission."""
        with self._lock:
            changed, self._changed = self._changed, set()
        try:
            self._update(session, changed)
        except Exception:
            self.forget()
            raise
        return [one for one in self._queued.values() if one.is_due(now)]

    def _update(self, session: Session, changed: set[str]) -> None:
        began = time.monotonic()
        values = priorities(session)
        if len(changed) > MANY or began - self._whole_at > REFRESH_S or values != self._values:
            self._queued = _read(session, None, values)
            self._whole_at, self._values = began, values
        elif changed:
            kept = {job_id: one for job_id, one in self._queued.items() if job_id not in changed}
            self._queued = dict(sorted((kept | _read(session, changed, values)).items()))

    def _note(self, changed: Changes) -> None:
        if changed.plan:
            self.recheck(changed.jobs)


def queued(session: Session) -> list[Queued]:
    """All of them in order of submission, as the database has them now."""
    return list(_read(session, None, priorities(session)).values())


def _read(session: Session, job_ids: set[str] | None, values: Mapping[str, int]) -> dict[str, Queued]:
    """The queued ones of these jobs, or of all, in order of submission."""
    query = select(
        Job.id,
        Job.demand,
        Job.longest_sequence,
        Job.attempt,
        Job.phase,
        Job.not_before,
        Job.project_id,
        Job.priority,
        Job.created_at,
        Job.queued_at,
        Job.limits,
    ).where(Job.state == JobState.QUEUED)
    if job_ids is not None:
        query = query.where(Job.id.in_(job_ids))
    rows = session.execute(query.order_by(Job.id)).all()
    last = _last_attempts(session) if any(row.attempt for row in rows) else {}
    promised = _promised(session, job_ids)
    may_run = limits.wall_seconds(session, {row.id: row.limits for row in rows})
    found: dict[str, Queued] = {}
    for row in rows:
        before = last.get(row.id, _NO_ATTEMPT)
        asked = waiting_job(row.id, row.demand, row.longest_sequence, before.lapsed_on, row.project_id)
        job = replace(
            asked,
            priority=row.priority,
            value=values.get(row.priority, 0),
            queued_at=(row.queued_at or row.created_at).timestamp(),
            first_queued_at=row.created_at.timestamp() if before.sent_away else None,
            promised=promised.get(row.id, ()),
            seconds=may_run.get(row.id),
        )
        found[row.id] = Queued(job, row.phase, row.not_before)
    return found


class _LastAttempt(NamedTuple):
    """What a queued job's last attempt means for the next one."""

    lapsed_on: frozenset[str] = NOBODY  # nodes
    sent_away: bool = False  # it gave way, or its node drained: the job returns to its old place


_NO_ATTEMPT = _LastAttempt()
_SENT_AWAY = ("preempted", "drained")


def _last_attempts(session: Session) -> dict[str, _LastAttempt]:
    """Queued jobs' last attempts that lapsed or were sent away, by job."""
    blamed = (Attempt.nodes == 1) | (AttemptMember.outcome == LAPSED)
    query = (
        select(Job.id, Attempt.state, Attempt.order_cause, Allocation.node_id, blamed.label("blamed"))
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.number == Job.attempt))
        .join(Allocation, Allocation.attempt_id == Attempt.id)
        .outerjoin(
            AttemptMember,
            (AttemptMember.attempt_id == Attempt.id) & (AttemptMember.node_id == Allocation.node_id),
        )
        .where(Job.state == JobState.QUEUED, Job.attempt > 0)
        .where((Attempt.state == "lapsed") | Attempt.order_cause.in_(_SENT_AWAY))
    )
    found: dict[str, _LastAttempt] = {}
    for job_id, state, cause, node_id, is_blamed in session.execute(query):
        nodes = found.get(job_id, _NO_ATTEMPT).lapsed_on
        if state == "lapsed" and is_blamed:
            nodes |= {node_id}
        found[job_id] = _LastAttempt(nodes, cause in _SENT_AWAY)
    return found


def _promised(session: Session, job_ids: set[str] | None) -> dict[str, tuple[str, ...]]:
    """The nodes on which others were told to give way to queued jobs, by job. It holds until the job starts,
    whatever becomes of those others."""
    query = (
        select(Job.id, Allocation.node_id)
        .join(Attempt, Attempt.made_way_for == Job.id)
        .join(Allocation, Allocation.attempt_id == Attempt.id)
        .where(Job.state == JobState.QUEUED, Allocation.engine_id.is_(None))
        .where(Attempt.ordered_at >= func.coalesce(Job.queued_at, Job.created_at))
        .order_by(Allocation.id)
    )
    if job_ids is not None:
        query = query.where(Job.id.in_(job_ids))
    found: dict[str, tuple[str, ...]] = {}
    for job_id, node_id in session.execute(query):
        found[job_id] = tuple(dict.fromkeys((*found.get(job_id, ()), node_id)))
    return found
