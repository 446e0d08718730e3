"""Sends the outbox's messages, and re-sends them with growing pauses until somebody has acted on them."""

import logging
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import ColumnElement, select, update
from sqlalchemy.orm import Session

from powermean.contracts.names import VALIDATE_TASK, node_queue
from server.cluster import demand, inventory
from server.cluster.clock import LONGEST_RESEND_S
from server.db.models import Job, Outbox
from server.db.session import Database, database_now
from server.nodes import living_ids
from server.queue import BrokerDownError, Sender
from server.settings import Settings

log = logging.getLogger(__name__)

_BATCH = 100


@dataclass(frozen=True)
class _Message:
    """`sends` is how often it had been sent when it was read; no `queue`: no live node can take it."""

    id: int
    task: str
    queue: str | None
    subject: str
    sends: int


@dataclass
class Relay:
    """Any number of replicas may relay; each sends what no other has taken in the meantime."""

    database: Database
    settings: Settings
    sender: Sender
    broker_down: bool = False

    def turn(self) -> bool:
        """Send some of what is due; whether there may be more.

        A message is marked as sent first, so a crash in between only delays it.
        """
        with self.database.read() as session:
            now = database_now(session)
            due = _due(session, self.settings, now)
        if not due:
            return False
        with self.database.write() as session:
            taken = self._take(session, due, now)
        messages = [message for message in due if message.id in taken]
        for number, message in enumerate(messages):
            assert message.queue is not None
            try:
                self.sender.send(message.task, message.queue, message.subject, LONGEST_RESEND_S)
            except BrokerDownError as error:
                self._put_back(messages[number:], error)
                return False
            if self.broker_down:
                log.info("the broker is back")
                self.broker_down = False
        return len(due) == _BATCH

    def _take(self, session: Session, due: Iterable[_Message], now: datetime) -> set[int]:
        """Mark messages as sent, unless another replica did or they have been settled; which were marked."""
        groups: dict[tuple[bool, int], list[int]] = defaultdict(list)
        for message in due:
            groups[message.queue is not None, message.sends].append(message.id)
        taken: set[int] = set()
        for (possible, sends), ids in groups.items():
            unchanged = Outbox.id.in_(ids), Outbox.sends == sends, Outbox.done_at.is_(None)
            pause = self._pause(sends) if possible else timedelta(seconds=self.settings.poll_s)
            free = _not_held(*unchanged, Outbox.next_send_at <= now)
            mark = update(Outbox).where(free).values(next_send_at=now + pause, sends=sends + possible)
            marked = session.execute(mark.returning(Outbox.id).execution_options(synchronize_session=False))
            if possible:
                taken.update(marked.scalars())
        return taken

    def _pause(self, sends: int) -> timedelta:
        return timedelta(seconds=min(self.settings.resend_s * 2 ** min(sends, 16), LONGEST_RESEND_S))

    def _put_back(self, messages: list[_Message], error: BrokerDownError) -> None:
        if not self.broker_down:
            log.error("cannot send to the broker, will keep trying: %s", error)
            self.broker_down = True
        with self.database.write() as session:
            again_at = database_now(session) + timedelta(seconds=self.settings.poll_s)
            free = _not_held(Outbox.id.in_([message.id for message in messages]))
            put_back = update(Outbox).where(free).values(sends=Outbox.sends - 1, next_send_at=again_at)
            session.execute(put_back.execution_options(synchronize_session=False))


def _not_held(*conditions: ColumnElement[bool]) -> ColumnElement[bool]:
    """Those that no other transaction has locked: one that settles several could wait for us, too."""
    return Outbox.id.in_(select(Outbox.id).where(*conditions).with_for_update(skip_locked=True))


def _due(session: Session, settings: Settings, now: datetime) -> list[_Message]:
    """Messages that are due, with the queues of nodes that can act on them; read without a lock."""
    query = (
        select(Outbox.id, Outbox.task, Outbox.queue, Outbox.subject, Outbox.sends, Job.demand)
        .outerjoin(Job, (Outbox.task == VALIDATE_TASK) & (Job.id == Outbox.subject))
        .where(Outbox.done_at.is_(None), Outbox.next_send_at <= now)
        .order_by(Outbox.id)
        .limit(_BATCH)
    )
    rows = session.execute(query).all()
    if not rows:
        return []
    living, offline = inventory.known(session, living_ids(session, settings))
    anyone = [node.id for node in living if node.closed is None]
    able: dict[str | None, list[str]] = {None: anyone}  # by demand
    found = []
    for id_, task, queue, subject, sends, demanded in rows:
        if demanded not in able:
            able[demanded] = demand.checkers(demanded, living, offline)
        nodes = able[demanded]
        if queue is None and nodes:  # round robin
            queue = node_queue(nodes[(id_ + sends) % len(nodes)])
        found.append(_Message(id_, task, queue, subject, sends))
    return found
