"""Pools for people: what each has, and what is wrong. Any server answers, from the database alone."""

from collections import Counter
from collections.abc import Sequence
from typing import cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.pools import PilotPhase, PilotView, PoolList, PoolView, Shape
from powermean.contracts.replays import Replay
from server.cluster.pilots import ENDED, outlook
from server.db.models import Pilot, PoolStatus
from server.db.session import database_now
from server.errors import NotFoundError
from server.nodes import living_ids
from server.pools.declaration import LOCAL
from server.replays.views import NO_NODE
from server.settings import Settings

ENDED_SHOWN = 20  # of each pool


def list_pools(session: Session, settings: Settings) -> PoolList:
    """All pools by name, and first the nodes that come by themselves."""
    alive = living_ids(session, settings)
    of_pools = set(session.scalars(select(Pilot.node_id).where(Pilot.state != ENDED)))
    local = PoolView(
        name=LOCAL,
        kind=LOCAL,
        shape=None,
        min=0,
        max=None,
        error=None,
        states={},
        nodes=len(alive - of_pools),
        pilots=(),
    )
    statuses = session.scalars(select(PoolStatus).order_by(PoolStatus.name))
    return PoolList(items=(local, *(_view(session, one, alive) for one in statuses)))


def show_pool(session: Session, settings: Settings, name: str) -> PoolView:
    """One of them. Raises NotFoundError."""
    found = next((one for one in list_pools(session, settings).items if one.name == name), None)
    if found is None:
        raise NotFoundError(f"no pool {name}", remedy="GET /v1/pools lists the pools.")
    return found


def naming_pools(session: Session, settings: Settings, replays: Sequence[Replay]) -> tuple[Replay, ...]:
    """The replays; those that no node takes say what pools do about that."""
    if not any(replay.phase == NO_NODE for replay in replays):
        return tuple(replays)
    of_pools = outlook(session, settings, living_ids(session, settings), database_now(session)).words()
    phase = f"waiting for a node: {'; '.join(of_pools)}" if of_pools else NO_NODE
    return tuple(
        replay.model_copy(update={"phase": phase}) if replay.phase == NO_NODE else replay
        for replay in replays
    )


def _view(session: Session, pool: PoolStatus, alive: frozenset[str]) -> PoolView:
    ours = select(Pilot).where(Pilot.pool == pool.name)
    living = list(session.scalars(ours.where(Pilot.state != ENDED).order_by(Pilot.created_at, Pilot.id)))
    ended = ours.where(Pilot.state == ENDED).order_by(Pilot.ended_at.desc()).limit(ENDED_SHOWN)
    return PoolView(
        name=pool.name,
        kind=pool.kind,
        shape=Shape.model_validate(pool.shape),
        min=pool.min,
        max=pool.max,
        error=pool.error,
        states=dict(Counter(one.state for one in living)),
        nodes=sum(one.node_id in alive for one in living),
        pilots=tuple(_pilot(one) for one in (*living, *session.scalars(ended))),
    )


def _pilot(row: Pilot) -> PilotView:
    return PilotView(
        id=row.id,
        node=row.node_id,
        state=cast(PilotPhase, row.state),
        reason=row.leaves or row.reason,
        external_id=row.external_id,
        created_at=row.created_at,
        started_at=row.started_at,
        ended_at=row.ended_at,
        ends_at=row.ends_at,
    )
