"""Nodes that administrators close to new work, and the emptying of those that drain.

What an administrator says is kept in the node's row, whether the node is alive, gone or comes back, and apart
from what its worker says: a node whose allocation is being ended drains as long as that is so. The leader
carries it out by looking at what is there, turn by turn: an attempt that was started while the node was being
closed is found by the next look, and saying the same twice changes nothing.
"""

from collections.abc import Iterable
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from powermean.contracts.api import NodeClosing, NodeDrain
from server.db.models import DRAINING, Allocation, Attempt, Node
from server.db.session import changes, database_now
from server.errors import ConflictError, InvalidInputError, NotFoundError
from server.jobs import attempts
from server.jobs.events import lock_job
from server.nodes import RUNNING

FURTHEST = timedelta(days=366)


def cordon(session: Session, node_id: str, asked: NodeClosing, person: str) -> None:
    """Give the node nothing new. One that drains goes on draining. Raises NotFoundError."""
    node = _locked(session, node_id)
    node.ordered_state = node.ordered_state or "cordoned"
    _say_why(session, node, asked, person)


def drain(session: Session, node_id: str, asked: NodeDrain, person: str) -> None:
    """Empty the node, from now on or from `asked.at` on.

    Raises:
        NotFoundError: there is no such node.
        InvalidInputError: the time is past, or too far away.
        ConflictError: it drains already, and was to begin later.
    """
    node = _locked(session, node_id)
    now = database_now(session)
    if asked.at is None:
        if node.ordered_state != DRAINING:
            node.ordered_state, node.drain_at = DRAINING, now
    else:
        _check_time(asked.at, now)
        if node.ordered_state == DRAINING:
            raise ConflictError(f"node {node_id} is draining already", remedy="Uncordon it first.")
        node.drain_at = asked.at
    _say_why(session, node, asked, person)


def uncordon(session: Session, node_id: str) -> None:
    """Open the node again. Attempts that were told to leave still do. Raises NotFoundError."""
    node = _locked(session, node_id)
    node.ordered_state = node.ordered_state_reason = node.drain_at = None
    changes(session).plan = True


def begin_due(session: Session, now: datetime) -> None:
    """Start the drains whose time has come."""
    session.execute(update(Node).where(*_due(now)).values(ordered_state=DRAINING))


def any_due(session: Session, now: datetime) -> bool:
    return session.execute(select(Node.id).where(*_due(now)).limit(1)).first() is not None


def draining(session: Session) -> dict[str, str]:
    """The nodes that drain, with the reason that attempts there are given."""
    return {
        node.id: why_closed(node) for node in session.scalars(select(Node).where(Node.closed == DRAINING))
    }


def why_closed(node: Node) -> str:
    """What jobs that wait for a closed node say: `n3 is draining (kernel update)`."""
    return f"{node.id} is {node.closed} ({node.closed_reason})"


def to_leave(session: Session, nodes: Iterable[str]) -> list[str]:
    """The jobs with something on these nodes that nobody has told to leave yet."""
    query = (
        select(Attempt.job_id)
        .join(Allocation, Allocation.attempt_id == Attempt.id)
        .where(
            Allocation.node_id.in_(nodes),
            Allocation.released_at.is_(None),
            Attempt.state.in_(RUNNING),
            Attempt.order == "continue",
        )
    )
    return list(session.scalars(query.distinct().order_by(Attempt.job_id)))


def order_to_leave(session: Session, job_id: str, now: datetime) -> None:
    """Stop a job at its next step because a node of its drains, if it is still so."""
    job = lock_job(session, job_id)
    query = select(Node).join(Allocation, Allocation.node_id == Node.id).order_by(Node.id).limit(1)
    held = Allocation.attempt_id == f"{job_id}.{job.attempt}", Allocation.released_at.is_(None)
    node = session.scalar(query.where(*held, Node.closed == DRAINING))
    if node is not None:
        attempts.order_stop(session, job, why_closed(node), now, cause="drained")


def _due(now: datetime) -> tuple[ColumnElement[bool], ...]:
    return Node.drain_at <= now, Node.ordered_state.is_distinct_from(DRAINING)


def _locked(session: Session, node_id: str) -> Node:
    node = session.get(Node, node_id, with_for_update=True)
    if node is None:
        raise NotFoundError(f"no node {node_id}", remedy="GET /v1/nodes lists the nodes.")
    return node


def _say_why(session: Session, node: Node, asked: NodeClosing, person: str) -> None:
    if asked.reason or not node.ordered_state_reason:
        node.ordered_state_reason = (asked.reason or f"by {person}")[:200]
    changes(session).plan = True


def _check_time(at: datetime, now: datetime) -> None:
    if at <= now:
        raise InvalidInputError.at("at", "is past", "Leave it out to drain the node at once.")
    if at > now + FURTHEST:
        raise InvalidInputError.at("at", f"is more than {FURTHEST.days} days away", "Give a nearer time.")
