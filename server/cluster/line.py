"""The line of queued jobs, kept between the scheduler's turns so that a turn reads only what has changed.

The database is the truth, and whoever starts a job looks at it again: what stands here was so a moment ago.
This server's own commits say which jobs to read again. Those of other servers are found by reading the whole
line now and then, as a new leader does.
"""

import threading
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from server.cluster.demand import waiting_job
from server.cluster.planner import WaitingJob
from server.db.models import Allocation, Attempt, Job
from server.db.session import Changes, Database

REFRESH_S = 5.0  # the whole line is read so often
MANY = 500  # changed jobs from which on the whole line is read

_NOBODY: frozenset[str] = frozenset()


class Queued(NamedTuple):
    """A queued job."""

    job: WaitingJob
    phase: str | None
    not_before: datetime | None


class Line:
    """The queued jobs. The scheduler's thread reads it; any thread may commit changes."""

    def __init__(self, database: Database) -> None:
        self._queued: dict[str, Queued] = {}
        self._lock = threading.Lock()
        self._changed: set[str] = set()
        self._whole_at = float("-inf")  # when all of it was last read
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

    def told(self, phases: Mapping[str, str]) -> None:
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
        return [one for one in self._queued.values() if one.not_before is None or one.not_before <= now]

    def _update(self, session: Session, changed: set[str]) -> None:
        began = time.monotonic()
        if len(changed) > MANY or began - self._whole_at > REFRESH_S:
            self._queued = _read(session, None)
            self._whole_at = began
        elif changed:
            kept = {job_id: one for job_id, one in self._queued.items() if job_id not in changed}
            self._queued = dict(sorted((kept | _read(session, changed)).items()))

    def _note(self, changed: Changes) -> None:
        if changed.plan:
            self.recheck(changed.jobs)


def _read(session: Session, job_ids: set[str] | None) -> dict[str, Queued]:
    """The queued ones of these jobs, or of all, in order of submission."""
    query = select(Job.id, Job.demand, Job.longest_sequence, Job.attempt, Job.phase, Job.not_before).where(
        Job.state == JobState.QUEUED
    )
    if job_ids is not None:
        query = query.where(Job.id.in_(job_ids))
    rows = session.execute(query.order_by(Job.id)).all()
    avoid = _let_down(session) if any(row.attempt for row in rows) else {}
    return {
        row.id: Queued(
            waiting_job(row.id, row.demand, row.longest_sequence, avoid.get(row.id, _NOBODY)),
            row.phase,
            row.not_before,
        )
        for row in rows
    }


def _let_down(session: Session) -> dict[str, frozenset[str]]:
    """The nodes on which queued jobs' last attempts lapsed, by job."""
    query = (
        select(Job.id, Allocation.node_id)
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.number == Job.attempt))
        .join(Allocation, Allocation.attempt_id == Attempt.id)
        .where(Job.state == JobState.QUEUED, Job.attempt > 0, Attempt.state == "lapsed")
    )
    found: dict[str, frozenset[str]] = {}
    for job_id, node_id in session.execute(query):
        found[job_id] = found.get(job_id, frozenset()) | {node_id}
    return found
