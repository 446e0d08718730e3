"""Outgoing Celery messages: written in the transaction that causes them, sent by the relay afterwards."""

from datetime import datetime

from sqlalchemy import update
from sqlalchemy.orm import Session

from server.db.models import Outbox
from server.db.session import changes, insert_row


def owe(session: Session, task: str, queue: str | None, subject: str, now: datetime) -> None:
    """Send `task(subject)` and re-send it until it is settled; queue None means any live node."""
    row = {"task": task, "queue": queue, "subject": subject, "next_send_at": now, "created_at": now}
    insert_row(session, Outbox, row)
    changes(session).send = True


def settle(session: Session, subject: str, now: datetime, queue: str | None = None) -> None:
    """Send nothing more about `subject` (to this queue alone, if one is named)."""
    table = Outbox.__table__
    owed = update(table).where(table.c.subject == subject, table.c.done_at.is_(None))  # type: ignore[arg-type]
    if queue is not None:
        owed = owed.where(table.c.queue == queue)
    session.connection().execute(owed.values(done_at=now))
