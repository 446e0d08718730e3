"""What the planner has to know of pools: the nodes that they are starting or could start, and their ends.

`server/pools/` asks the engines and keeps the rows; here they are only read.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.attempts import GpuInfo
from powermean.contracts.pools import Shape
from server.cluster.leadership import served_since
from server.db.models import Node, Pilot, PoolStatus
from server.nodes import NodeNameTakenError
from server.placement.state import Coming, NodeCapacity
from server.settings import Settings

ENDED = "ended"
KINDS = {"slurm": "Slurm", "kubernetes": "Kubernetes"}


def living(session: Session, pool: str | None = None) -> list[Pilot]:
    """The pilots that have not ended, of one pool or of all, the oldest first."""
    query = select(Pilot).where(Pilot.state != ENDED).order_by(Pilot.created_at, Pilot.id)
    return list(session.scalars(query if pool is None else query.where(Pilot.pool == pool)))


def as_node(node_id: str, shape: Shape) -> NodeCapacity:
    """A node of this shape, all of it free."""
    gpus = tuple(
        GpuInfo(uuid=f"{node_id}/{place}"[-64:], name=shape.gpu_type, memory_mb=shape.gpu_memory_mb)
        for place in range(shape.gpus)
    )
    return NodeCapacity(
        id=node_id,
        cpu_slots=shape.cpu_slots,
        gpus=shape.gpus,
        free_cpu_slots=shape.cpu_slots,
        free_gpus=tuple(gpu.uuid for gpu in gpus),
        engines=shape.engines,
        labels=frozenset(shape.labels.items()),
        gpu_info=gpus,
        declared=True,
    )


def coming(session: Session, settings: Settings, alive: Collection[str], now: datetime) -> tuple[Coming, ...]:
    """The nodes that pools are starting, and that don't report yet: not those that have fallen silent.

    A pool that may have no nodes (max: 0, also one that is declared no more) starts none.
    """
    return tuple(
        Coming(as_node(one.node_id, Shape.model_validate(one.shape)), _words(one, pool))
        for one, pool in _coming(session, settings, alive, now)
    )


def any_coming(session: Session, settings: Settings, alive: Collection[str], now: datetime) -> bool:
    """Whether a pool is starting a node, and its engine doesn't refuse to."""
    return any(not _is_refused(one, pool) for one, pool in _coming(session, settings, alive, now))


def _coming(
    session: Session, settings: Settings, alive: Collection[str], now: datetime
) -> list[tuple[Pilot, PoolStatus | None]]:
    pools = {one.name: one for one in session.scalars(select(PoolStatus))}
    return [
        (one, pools.get(one.pool))
        for one in living(session)
        if one.leaves is None
        and not (one.pool in pools and pools[one.pool].max == 0)
        and one.node_id not in alive
        and not silence(session, settings, one, now)
    ]


def _is_refused(pilot: Pilot, pool: PoolStatus | None) -> bool:
    return pool is not None and pool.error is not None and pilot.external_id is None


def silence(session: Session, settings: Settings, pilot: Pilot, now: datetime) -> timedelta:
    """For how long a server has listened in vain for its node's reports; 0 before the first and until
    `node_timeout_s` is over.
    """
    node = session.get(Node, pilot.node_id)
    if node is None:
        return timedelta(0)
    silent = now - max(node.seen_at, served_since(session) or node.seen_at)
    return silent if silent > timedelta(seconds=settings.node_timeout_s) else timedelta(0)


def _words(pilot: Pilot, pool: PoolStatus | None) -> str:
    """`pool gpu is starting a node (Slurm: PENDING, Priority)`."""
    if pool is not None and _is_refused(pilot, pool):
        return f"pool {pilot.pool} can't start a node: {pool.error}"
    kind = KINDS.get(pool.kind, pool.kind) if pool is not None else "its engine"
    said = f" ({kind}: {pilot.reason})" if pilot.reason else ""
    return f"pool {pilot.pool} is starting a node{said}"


def outlooks(session: Session) -> tuple[Coming, ...]:
    """What keeps each pool from starting a node, beside one as it would start it."""
    have: dict[str, int] = {}
    for one in living(session):
        have[one.pool] = have.get(one.pool, 0) + 1
    found = []
    for pool in session.scalars(select(PoolStatus).where(PoolStatus.max > 0).order_by(PoolStatus.name)):
        full = f"it has its {pool.max} nodes" if have.get(pool.name, 0) >= pool.max else None
        if why := pool.error or full:
            node = as_node(f"pool {pool.name}", Shape.model_validate(pool.shape))
            found.append(Coming(node, f"pool {pool.name}: {why}"))
    return tuple(found)


@dataclass(frozen=True)
class Outlook:
    """The nodes that pools are starting, and what keeps each pool from starting one."""

    starting: tuple[Coming, ...]
    kept: tuple[Coming, ...]

    def words(self, fits: Callable[[NodeCapacity], bool] = lambda _: True) -> list[str]:
        """What pools say of a node that would do: that one is starting it, or else what keeps each from it.

        Nothing where no pool has such nodes.
        """
        starting = next((one.words for one in self.starting if fits(one.node)), None)
        return [starting] if starting else [one.words for one in self.kept if fits(one.node)]


def outlook(session: Session, settings: Settings, alive: Collection[str], now: datetime) -> Outlook:
    """What pools do about nodes that are missing."""
    return Outlook(coming(session, settings, alive, now), outlooks(session))


def startable(session: Session) -> list[NodeCapacity]:
    """One node of each pool, as it would start it."""
    return [
        as_node(f"pool {pool.name}", Shape.model_validate(pool.shape))
        for pool in session.scalars(select(PoolStatus).where(PoolStatus.max > 0).order_by(PoolStatus.name))
    ]


def about_to_end(session: Session, settings: Settings, now: datetime) -> dict[str, str]:
    """The pilots' nodes that drain before a job would have run for as long as one should, and why.

    One that was let go before its first report may report yet.
    """
    soon = Pilot.ends_at.is_not(None) & (Node.drain_at <= now + timedelta(seconds=settings.min_run_s))
    query = (
        select(Node.id, Pilot.ends_at, Pilot.leaves)
        .join(Pilot, Pilot.node_id == Node.id)
        .where(Pilot.state != ENDED, soon | Pilot.leaves.is_not(None))
    )
    return {
        node_id: f"{node_id} is about to end: {leaves or f'its time is over at {ends_at:%H:%M} UTC'}"
        for node_id, ends_at, leaves in session.execute(query)
    }


def check_owner(session: Session, node_id: str, bound: str | None) -> None:
    """Only a pilot's own token may use its node's name, until the pilot ends. Raises NodeNameTakenError."""
    pilot = session.scalar(select(Pilot).where(Pilot.node_id == node_id))
    if pilot is None:
        return
    if pilot.state == ENDED and bound == node_id:  # a report that was on its way when the token was revoked
        raise NodeNameTakenError(
            f"node {node_id} of pool {pilot.pool} has ended",
            remedy="Start no worker under a pilot's name.",
        )
    if pilot.state != ENDED and bound != node_id:
        raise NodeNameTakenError(
            f"node {node_id} belongs to pool {pilot.pool}, and this is not its token",
            remedy="Give the worker a POWERMEAN_NODE_ID of its own.",
        )
