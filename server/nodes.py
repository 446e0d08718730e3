"""Which nodes are alive, and whose names are taken.

A node that has not reported for `node_timeout_s` counts as gone. A name belongs to the worker that reports
under it until that is gone and nothing of it runs any more.
"""

from collections.abc import Sequence
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import NameRival, NodeReport
from powermean.contracts.names import NODE_NAME_TAKEN
from server.db.models import Allocation, Attempt, Node
from server.db.session import database_now
from server.errors import ConflictError, InvalidInputError, NotFoundError
from server.settings import Settings

RUNNING = ("starting", "running")  # states of attempts
OVER = ("ended", "lapsed")
PROBES, MOST_OF_A_PROBE = "probe/", 4096
RIVAL_SHOWN = timedelta(days=1)


class NodeNameTakenError(ConflictError):
    """Another worker has this name."""

    code = NODE_NAME_TAKEN


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


def any_open_node(session: Session, settings: Settings) -> bool:
    """Whether a living node takes new work."""
    open_ = Node.seen_at > _oldest(settings, database_now(session)), Node.closed.is_(None)
    return session.scalar(select(Node.id).where(*open_).limit(1)) is not None


def check_name(session: Session, settings: Settings, node: Node, report: NodeReport, now: datetime) -> None:
    """Raises NodeNameTakenError where the node is another worker's, which is alive or still runs attempts.

    Two workers under one name would be given each slot twice: what one of them runs, the other reports gone.
    """
    if not node.instance or node.instance == report.instance:
        return
    running = attempts_holding(session, node.id, RUNNING)
    if not running and not is_alive(node, settings, now):
        return
    seen = f"{(now - node.seen_at).total_seconds():.0f} s ago"
    host = NodeReport.model_validate(node.report).hostname
    held = f" and runs {', '.join(running)}" if running else ""
    raise NodeNameTakenError(
        f"node {node.id} is another worker's, on host {host}, which last reported {seen}{held}",
        remedy="Give each worker a POWERMEAN_NODE_ID of its own; a name is free once its worker has stopped.",
    )


def note_rival(session: Session, node_id: str, hostname: str) -> None:
    """Keep which other worker was refused the node's name, for whoever has it and for people."""
    rival = NameRival(hostname=hostname, at=database_now(session))
    session.execute(update(Node).where(Node.id == node_id).values(rival=rival.model_dump(mode="json")))


def rival_of(node: Node, now: datetime) -> NameRival | None:
    """The worker that was last refused the node's name, if that was not long ago."""
    rival = NameRival.model_validate(node.rival) if node.rival else None
    return rival if rival is not None and now - rival.at < RIVAL_SHOWN else None


def remove(session: Session, settings: Settings, node_id: str) -> None:
    """Forget a node that is gone for good, and what lapsed attempts hold there.

    Raises:
        NotFoundError: there is no such node.
        ConflictError: it is alive, or an attempt runs there.
    """
    node = session.get(Node, node_id, with_for_update=True)
    if node is None:
        raise NotFoundError(f"no node {node_id}", remedy="GET /v1/nodes lists the nodes.")
    now = database_now(session)
    if is_alive(node, settings, now):
        raise ConflictError(f"node {node_id} is alive", remedy="Stop its worker first.")
    if running := attempts_holding(session, node_id, RUNNING):
        raise ConflictError(
            f"node {node_id} runs {', '.join(running)}",
            remedy="Cancel the jobs first, or wait for their end.",
        )
    held = update(Allocation).where(Allocation.node_id == node_id, Allocation.released_at.is_(None))
    session.execute(held.values(released_at=now))
    session.delete(node)


def attempts_holding(session: Session, node_id: str, states: Sequence[str]) -> Sequence[str]:
    """Attempts in one of the states that hold something on the node."""
    query = (
        select(Attempt.id)
        .join(Allocation, Allocation.attempt_id == Attempt.id)
        .where(
            Allocation.node_id == node_id,
            Allocation.released_at.is_(None),
            Attempt.state.in_(states),
        )
        .order_by(Attempt.id)
        .distinct()
    )
    return session.execute(query).scalars().all()


def other_holder(session: Session, settings: Settings, node_id: str, instance: str) -> str | None:
    """The host of another worker that has this name now; None: it is free, or this one's."""
    node = session.get(Node, node_id)
    if node is None or not node.instance or node.instance == instance:
        return None
    if not is_alive(node, settings, database_now(session)) and not attempts_holding(
        session, node_id, RUNNING
    ):
        return None
    return NodeReport.model_validate(node.report).hostname


def why_unreadable(store: ArtefactStore, probe: ArtefactRef) -> str | None:
    """Why the server can't read the object that a node has just stored below `probe/`; None: it can."""
    if not probe.key.startswith(PROBES) or probe.size > MOST_OF_A_PROBE:
        raise InvalidInputError.at("probe", f"is not a small object below {PROBES}")
    try:
        if not store.exists(probe):  # one larger than it claims must not fill our memory
            return f"there is no object {probe.key} of {probe.size} bytes"
        store.get_bytes(probe)
    except ArtefactError as error:
        return str(error)
    return None


def _oldest(settings: Settings, now: datetime) -> datetime:
    return now - timedelta(seconds=settings.node_timeout_s)
