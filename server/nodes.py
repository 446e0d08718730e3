"""Which nodes are alive: a node that has not reported for `node_timeout_s` counts as gone."""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db.models import Node
from server.db.session import database_now
from server.settings import Settings


def is_alive(node: Node, settings: Settings, now: datetime) -> bool:
    """Whether the node has reported recently."""
    return node.seen_at > _oldest(settings, now)


def living_nodes(session: Session, settings: Settings, now: datetime) -> Sequence[Node]:
    """The nodes that are alive, by id."""
    query = select(Node).where(Node.seen_at > _oldest(settings, now)).order_by(Node.id)
    return session.execute(query).scalars().all()


def living_ids(session: Session, settings: Settings) -> frozenset[str]:
    """The ids of the nodes that are alive now."""
    oldest = _oldest(settings, database_now(session))
    return frozenset(session.execute(select(Node.id).where(Node.seen_at > oldest)).scalars())


def _oldest(settings: Settings, now: datetime) -> datetime:
    return now - timedelta(seconds=settings.node_timeout_s)
