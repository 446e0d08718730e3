"""The checks of specs that wait in the outbox, and those that are out to nodes."""

from collections import Counter
from collections.abc import Mapping
from datetime import datetime

from sqlalchemy import case, func, select, text
from sqlalchemy.orm import Session

from powermean.contracts.names import VALIDATE_TASK
from server.cluster.check_order import Check, Out
from server.cluster.sharing import priorities
from server.db.models import Job, Outbox

KEPT = 4  # sends from which on a check that nobody settles goes to the end of the line: after a minute or so
_OWED = Outbox.task == VALIDATE_TASK, Outbox.done_at.is_(None)
_POSTGRES_LOCK = 0x706D_0002  # advisory lock


def any_due(session: Session, now: datetime) -> bool:
    """Whether there is a check to send."""
    return session.scalar(select(Outbox.id).where(*_OWED, Outbox.next_send_at <= now).limit(1)) is not None


def sends_alone(session: Session) -> bool:
    """Whether no other replica sends checks before this transaction ends; SQLite has one writer anyway."""
    if session.get_bind().dialect.name == "sqlite":
        return True
    return bool(session.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _POSTGRES_LOCK}))


def out(session: Session, now: datetime, turns: Mapping[str, int]) -> Out:
    """What is out now."""
    query = (
        select(Outbox.queue, Job.project_id)
        .join(Job, Job.id == Outbox.subject)
        .where(*_OWED, Outbox.next_send_at > now, Outbox.sends > 0)
    )
    rows = session.execute(query).all()
    queues = Counter(row.queue for row in rows if row.queue is not None)
    return Out(queues, Counter(row.project_id for row in rows), turns)


def waiting(session: Session, now: datetime, most: int) -> list[Check]:
    """The checks to send, of each project's at least as many as could be among the next `most` of all.

    A higher priority class goes first, then who came first. A check that was sent often counts as one of the
    lowest class that has just come: were it first again, a few that end their node would hold up all others.
    """
    often = Outbox.sends >= KEPT
    place = case((often, Outbox.next_send_at), else_=Outbox.created_at)
    alike = Job.project_id, Job.priority, Job.demand, often
    ranked = (
        select(
            Outbox.id,
            Outbox.subject,
            Outbox.sends,
            Outbox.queue,
            Job.project_id,
            Job.priority,
            Job.demand,
            place.label("place"),
            func.row_number().over(partition_by=alike, order_by=(place, Outbox.id)).label("nth"),
        )
        .join(Job, Job.id == Outbox.subject)
        .where(*_OWED, Outbox.next_send_at <= now)
        .subquery()
    )
    query = select(ranked).where(ranked.c.nth <= most).order_by(ranked.c.place, ranked.c.id)
    rows = session.execute(query).all()
    values = priorities(session) if rows else {}
    lowest = min(values.values(), default=0)
    ordered = sorted(rows, key=lambda row: -(lowest if row.sends >= KEPT else values.get(row.priority, 0)))
    return [Check(row.id, row.subject, row.project_id, row.demand, row.sends, row.queue) for row in ordered]
