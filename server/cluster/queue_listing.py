"""The queue as a person may see it: their projects' jobs with reasons, of all others the number alone.

A reason may name other projects and their jobs, since who goes first depends on them. It says itself what
remains of it for those who may not see them.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from sqlalchemy import Row, select

from powermean.contracts.api import JobState
from powermean.contracts.sharing import Needs, Queue, QueuedJob
from server.db.models import Job, Person
from server.db.scoped import ScopedSession
from server.errors import NotFoundError
from server.jobs.demand import stored_demand

AHEAD_NAMED = 5  # jobs of one's own projects that are named; of the rest there is the position


class Reason(Protocol):
    """Why a job waits: its place from 1 on, and when it may start, in seconds since the epoch."""

    @property
    def kind(self) -> str: ...
    @property
    def position(self) -> int: ...
    @property
    def help(self) -> str | None: ...
    @property
    def start_at(self) -> float | None: ...
    @property
    def basis(self) -> str | None: ...

    def words(self, may_see: Callable[[str], bool]) -> str:
        """The reason for somebody who may see these projects."""
        ...


def list_queue(
    session: ScopedSession,
    reasons: Mapping[str, Reason],
    *,
    project: str | None = None,
    job: str | None = None,
    limit: int,
) -> Queue:
    """The waiting jobs that the session sees, in order; of one project, or one job, if that is asked for.

    Raises NotFoundError: the job that was asked for doesn't wait.
    """
    owners = _own_jobs(session)
    own = [one for one in sorted(reasons, key=lambda one: reasons[one].position) if one in owners]
    chosen = [one for one in own if project in (None, owners[one]) and job in (None, one)]
    if job is not None and not chosen:
        raise NotFoundError(f"job {job} is not in the queue", remedy="GET /v1/jobs/{id} says what it does.")
    shown = chosen[:limit]
    rows = {row.id: row for row in _rows(session, shown)}
    place = {one: number for number, one in enumerate(own)}
    return Queue(
        items=tuple(
            _queued(rows[one], reasons[one], own, place[one], session.projects)
            for one in shown
            if one in rows
        ),
        others=len(reasons) - len(own),
        left_out=len(chosen) - len(shown),
    )


def _own_jobs(session: ScopedSession) -> dict[str, str]:
    """The queued jobs that the session sees, with their projects."""
    query = select(Job.id, Job.project_id).where(Job.state == JobState.QUEUED)
    return {row.id: row.project_id for row in session.execute(query)}


def _rows(session: ScopedSession, job_ids: Sequence[str]) -> Iterable[Row[Any]]:
    columns = (Job.id, Job.name, Job.project_id, Job.priority, Job.queued_at, Job.created_at, Job.demand)
    query = select(*columns, Person.name.label("owner")).join(Person, Person.id == Job.created_by)
    return session.execute(query.where(Job.id.in_(job_ids)))


def _queued(
    row: Row[Any], reason: Reason, own: Sequence[str], place: int, visible: frozenset[str] | None
) -> QueuedJob:
    """`own`: the jobs that are seen, in order; this one is at `place`, from 0 on."""
    demand = stored_demand(row.demand)
    shared = demand.adapter is not None and demand.adapter.required
    start = reason.start_at
    return QueuedJob(
        id=row.id,
        name=row.name,
        project=row.project_id,
        owner=row.owner,
        priority=row.priority,
        position=reason.position,
        since=row.queued_at or row.created_at,
        needs=Needs(
            gpus=demand.gpus + (0 if shared else demand.rollout_gpus),
            gpu_type=demand.gpu_type,
            gpu_memory_gib=round(demand.gpu_memory_mb / 1024, 1),
            node_labels=dict(demand.labels),
            shared_engine=shared,
        ),
        kind=reason.kind,
        reason=reason.words(lambda project: visible is None or project in visible),
        help=reason.help,
        ahead=tuple(reversed(own[max(0, place - AHEAD_NAMED) : place])),
        ahead_own=place,
        ahead_others=max(0, reason.position - 1 - place),
        starts_at=datetime.fromtimestamp(start, UTC) if start is not None else None,
        basis=reason.basis,
    )
