"""Sends the outbox's messages, and re-sends them with growing pauses until somebody has acted on them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.names import VALIDATE_TASK, node_queue
from server.cluster import demand
from server.db.models import Job, Node, Outbox
from server.db.session import Database, database_now
from server.nodes import living_nodes
from server.queue import BrokerDownError, Sender
from server.settings import Settings

log = logging.getLogger(__name__)

_BATCH = 100
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class _Message:
    id: int
    task: str
    queue: str
    subject: str


@dataclass
class Relay:
    """Any number of replicas may relay; each takes messages that the others have not taken."""

    database: Database
    settings: Settings
    sender: Sender
    broker_down: bool = False

    def turn(self) -> None:
        """Send what is due. A message is marked as sent first, so a crash in between only delays it."""
        with self.database.read() as session:
            if not _any_due(session):
                return
        with self.database.write() as session:
            messages = self._take(session)
        for number, message in enumerate(messages):
            try:
                self.sender.send(message.task, message.queue, message.subject, _LONGEST_PAUSE_S)
            except BrokerDownError as error:
                self._put_back(messages[number:], error)
                return
            if self.broker_down:
                log.info("the broker is back")
                self.broker_down = False

    def _take(self, session: Session) -> list[_Message]:
        now = database_now(session)
        due = (
            select(Outbox)
            .where(Outbox.done_at.is_(None), Outbox.next_send_at <= now)
            .order_by(Outbox.id)
            .limit(_BATCH)
            .with_for_update(skip_locked=True)
        )
        rows = session.execute(due).scalars().all()
        living = living_nodes(session, self.settings, now)
        taken = []
        for row in rows:
            queue = row.queue or _any_queue(session, row, living)
            if queue is None:  # no live node can take it
                row.next_send_at = now + timedelta(seconds=self.settings.poll_s)
                continue
            row.next_send_at = now + self._pause(row.sends)
            row.sends += 1
            taken.append(_Message(row.id, row.task, queue, row.subject))
        return taken

    def _pause(self, sends: int) -> timedelta:
        return timedelta(seconds=min(self.settings.resend_s * 2 ** min(sends, 16), _LONGEST_PAUSE_S))

    def _put_back(self, messages: list[_Message], error: BrokerDownError) -> None:
        if not self.broker_down:
            log.error("cannot send to the broker, will keep trying: %s", error)
            self.broker_down = True
        with self.database.write() as session:
            again_at = database_now(session) + timedelta(seconds=self.settings.poll_s)
            for row in session.execute(
                select(Outbox).where(Outbox.id.in_([message.id for message in messages]))
            ).scalars():
                row.sends -= 1
                row.next_send_at = again_at


def _any_queue(session: Session, message: Outbox, living: Sequence[Node]) -> str | None:
    """The queue of a node that can act on a message to any node; round robin."""
    able = [node.id for node in living]
    if message.task == VALIDATE_TASK and (job := session.get(Job, message.subject)) is not None:
        able = demand.checkers(session, job, living)
    return node_queue(able[(message.id + message.sends) % len(able)]) if able else None


def _any_due(session: Session) -> bool:
    now: datetime = database_now(session)
    query = select(Outbox.id).where(Outbox.done_at.is_(None), Outbox.next_send_at <= now).limit(1)
    return session.execute(query).first() is not None
