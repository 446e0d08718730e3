"""Outgoing Celery messages: written in the transaction that causes them, sent by the relay afterwards."""

from collections.abc import Iterable
from datetime import datetime
from typing import cast

from sqlalchemy import Table, bindparam, update
from sqlalchemy.orm import Session

from server.db.inserts import insert_rows
from server.db.models import Outbox
from server.db.session import changes

_TABLE = cast(Table, Outbox.__table__)
_SETTLED = (
    update(_TABLE)
    .where(_TABLE.c.subject == bindparam("about"), _TABLE.c.done_at.is_(None))
    .values(done_at=bindparam("now"))
)

_ALL_SETTLED = (
    update(_TABLE)
    .where(_TABLE.c.subject.in_(bindparam("about", expanding=True)), _TABLE.c.done_at.is_(None))
    .values(done_at=bindparam("now"))
)


def owe(session: Session, task: str, queue: str | None, subject: str, now: datetime) -> None:
    """Send `task(subject)` and re-send it until it is settled; queue None means any live node."""
    owe_all(session, task, queue, [subject], now)


def owe_all(session: Session, task: str, queue: str | None, subjects: Iterable[str], now: datetime) -> None:
    """owe() for each of these subjects."""
    row = {"task": task, "queue": queue, "next_send_at": now, "created_at": now}
    insert_rows(session, Outbox, [row | {"subject": subject} for subject in subjects])
    changes(session).send = True


def settle(session: Session, subject: str, now: datetime, queue: str | None = None) -> None:
    """Send nothing more about `subject` (to this queue alone, if one is named)."""
    owed = _SETTLED if queue is None else _SETTLED.where(_TABLE.c.queue == queue)
    session.connection().execute(owed, {"about": subject, "now": now})
    changes(session).send = True  # a node may have room for the next check


def settle_all(session: Session, subjects: Iterable[str], now: datetime) -> None:
    """settle() for each of these subjects."""
    session.connection().execute(_ALL_SETTLED, {"about": list(subjects), "now": now})
    changes(session).send = True
