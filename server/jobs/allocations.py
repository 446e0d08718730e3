"""What attempts hold on nodes, from their start until their processes there are known to be gone."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Select, Update, and_, func, select, true, update
from sqlalchemy.orm import Session

from powermean.contracts.attempts import AllocationView
from server.db.models import Allocation, Attempt, Job
from server.db.session import changes


def hold(session: Session, attempt_id: str, parts: Iterable[AllocationView]) -> None:
    """Allocate an attempt's gang."""
    for part in parts:
        session.add(
            Allocation(
                attempt_id=attempt_id,
                role=part.role,
                node_id=part.node_id,
                gpu_uuids=list(part.gpu_uuids),
                engine_id=part.engine_id,
            )
        )


def release(session: Session, attempt_id: str, now: datetime, node_id: str | None = None) -> None:
    """Free what the attempt holds (on one node), because its processes there are gone."""
    held = _held(attempt_id)
    if node_id is not None:
        held = held.where(Allocation.node_id == node_id)
    session.execute(held.values(released_at=now))
    changes(session).plan = True


def release_parts(session: Session, attempt_id: str, now: datetime, nodes: Collection[str]) -> None:
    """Free what the attempt holds on these of its nodes. A slot of an engine service is the first node's."""
    if nodes:
        held = _held(attempt_id).where(Allocation.node_id.in_(nodes), Allocation.engine_id.is_(None))
        session.execute(held.values(released_at=now))
        changes(session).plan = True


def release_slot(session: Session, attempt_id: str, now: datetime) -> None:
    """Free the attempt's slot of an engine service, if it has one."""
    session.execute(_held(attempt_id).where(Allocation.engine_id.is_not(None)).values(released_at=now))
    changes(session).plan = True


def _held(attempt_id: str) -> Update:
    return update(Allocation).where(Allocation.attempt_id == attempt_id, Allocation.released_at.is_(None))


def held(session: Session) -> Sequence[Allocation]:
    """Everything that is held, in order of allocation."""
    query = select(Allocation).where(Allocation.released_at.is_(None))
    found = session.execute(query).scalars().all()
    # Sorted here: in this order the database would read all allocations ever made.
    return sorted(found, key=lambda part: part.id)


@dataclass(frozen=True)
class Past:
    """An allocation with its times, and whose it is. `end` None: it is still held."""

    attempt_id: str
    node_id: str
    gpu_uuids: tuple[str, ...]
    engine_id: str | None
    start: datetime
    end: datetime | None
    job_id: str
    job_name: str
    project: str
    person_id: str
    state: str  # the job's
    deleted: bool  # the job is


def within(
    session: Session,
    since: datetime,
    until: datetime,
    most: int | None = None,
    projects: frozenset[str] | None = None,
) -> list[Past]:
    """What these projects (None: all) held at some time from `since` to `until`: what they still do, and the
    `most` released last."""
    theirs = true() if projects is None else Job.project_id.in_(projects)
    held = _past(until, and_(theirs, Allocation.released_at.is_(None)))
    released = _past(until, and_(theirs, Allocation.released_at > since))
    if most is not None:
        released = released.order_by(Allocation.released_at.desc()).limit(most)
    return [_read(row) for query in (held, released) for row in session.execute(query)]


def of_job(session: Session, job_id: str) -> list[Past]:
    """All that the job's attempts ever held."""
    return [_read(row) for row in session.execute(_past(None, Job.id == job_id))]


def count_released(session: Session, since: datetime) -> int:
    """How many allocations ended after `since`."""
    query = select(func.count()).select_from(Allocation).where(Allocation.released_at > since)
    return session.scalar(query) or 0


def _past(until: datetime | None, condition: ColumnElement[bool]) -> Select[Any]:
    query = select(
        Allocation.attempt_id,
        Allocation.node_id,
        Allocation.gpu_uuids,
        Allocation.engine_id,
        Allocation.released_at,
        Attempt.created_at,
        Job.id.label("job_id"),
        Job.name,
        Job.project_id,
        Job.created_by,
        Job.state,
        Job.deleted_at,
    )
    query = query.join(Attempt, Attempt.id == Allocation.attempt_id).join(Job, Job.id == Attempt.job_id)
    return query.where(condition, Attempt.created_at < until if until is not None else true())


def _read(row: Any) -> Past:
    return Past(
        attempt_id=row.attempt_id,
        node_id=row.node_id,
        gpu_uuids=tuple(row.gpu_uuids),
        engine_id=row.engine_id,
        start=row.created_at,
        end=row.released_at,
        job_id=row.job_id,
        job_name=row.name,
        project=row.project_id,
        person_id=row.created_by,
        state=row.state,
        deleted=row.deleted_at is not None,
    )
