"""What attempts hold on nodes, from their start until their processes there are known to be gone."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from powermean.contracts.attempts import AllocationView
from server.db.models import Allocation
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
    held = update(Allocation).where(Allocation.attempt_id == attempt_id, Allocation.released_at.is_(None))
    if node_id is not None:
        held = held.where(Allocation.node_id == node_id)
    session.execute(held.values(released_at=now))
    changes(session).plan = True


def held(session: Session) -> Sequence[Allocation]:
    """Everything that is held, in order of allocation."""
    query = select(Allocation).where(Allocation.released_at.is_(None))
    found = session.execute(query).scalars().all()
    # Sorted here: in this order the database would read all allocations ever made.
    return sorted(found, key=lambda part: part.id)
