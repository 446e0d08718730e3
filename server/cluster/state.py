"""The cluster's state as the planner takes it, read from the database."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from server.cluster import engines, inventory, pilots, sharing
from server.placement.state import ClusterState, Rules, WaitingJob
from server.settings import Settings


def read(session: Session, settings: Settings, queued: Sequence[WaitingJob], now: datetime) -> ClusterState:
    """The state around these queued jobs."""
    nodes = inventory.capacities(session, settings, now)
    return ClusterState(
        nodes=nodes,
        waiting=queued,
        engines=engines.shared(session, [node.id for node in nodes]),
        unplaced=engines.unplaced(session),
        running=sharing.running(session, sharing.priorities(session), now, nodes),
        shares=sharing.shares(session),
        rules=Rules(min_run_s=settings.min_run_s),
        now=now.timestamp(),
        coming=pilots.coming(session, settings, [node.id for node in nodes], now),
        withheld=pilots.outlooks(session),
    )
