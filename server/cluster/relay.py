"""Sends the outbox's messages, and re-sends them with growing pauses until somebody has acted on them."""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache

from sqlalchemy import ColumnElement, case, select, update
from sqlalchemy.orm import Session

from powermean.contracts.names import VALIDATE_TASK, node_queue
from server.cluster import checks, demand, inventory
from server.cluster.check_order import ROOM, Check, Out, choose
from server.cluster.clock import LONGEST_RESEND_S
from server.db.models import Outbox
from server.db.session import Database, database_now
from server.nodes import living_ids
from server.placement.state import NodeCapacity
from server.queue import BrokerDownError, Sender
from server.settings import Settings

log = logging.getLogger(__name__)

_BATCH = 100
_Known = tuple[list[NodeCapacity], list[NodeCapacity]]  # of inventory.known


@dataclass(frozen=True)
class _Message:
    """`sends` is how often it had been sent when it was read; no `queue`: no live node can take it."""

    id: int
    task: str
    queue: str | None
    subject: str
    sends: int


@dataclass
class _Checks:
    """Checks of specs that might be sent now; `able` are the queues of the nodes that may do a demand's."""

    waiting: list[Check]
    able: Callable[[str], Sequence[str]]

    def choose(self, out: Out) -> list[tuple[Check, str]]:
        """Those to send."""
        return choose(self.waiting, self.able, out, _BATCH)


@dataclass
class Relay:
    """Any number of replicas may relay; each sends what no other has taken in the meantime."""

    database: Database
    settings: Settings
    sender: Sender
    broker_down: bool = False
    turns: dict[str, int] = field(default_factory=dict)  # projects' last ones, of check_order.Out

    def turn(self) -> bool:
        """Send some of what is due; whether there may be more.

        A message is marked as sent first, so a crash in between only delays it.
        """
        with self.database.read() as session:
            now = database_now(session)
            nodes = cache(lambda: inventory.known(session, living_ids(session, self.settings)))
            due = _due(session, now, nodes)
            wanted = self._checks(session, now, nodes)
        if not due and wanted is None:
            return False
        with self.database.write() as session:
            messages = self._take(session, due, now)
            more = len(due) == _BATCH
            if wanted is not None:
                to_check, more_checks = self._take_checks(session, wanted, now)
                messages, more = messages + to_check, more or more_checks
        return self._send(messages) and more

    def _send(self, messages: Sequence[_Message]) -> bool:
        """Whether the broker took them all."""
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
        return True

    def _checks(self, session: Session, now: datetime, nodes: Callable[[], _Known]) -> _Checks | None:
        """What could be sent if no other replica did so; None: there are no checks, or no node has room."""
        if not checks.any_due(session, now):
            return None
        out = checks.out(session, now, self.turns)
        queues = [node_queue(node) for node in living_ids(session, self.settings)]
        room = sum(max(0, ROOM - out.by_queue.get(queue, 0)) for queue in queues)
        if not room:
            return None
        waiting = checks.waiting(session, now, min(room, _BATCH))
        able = cache(lambda wanted: [node_queue(node) for node in demand.checkers(wanted, *nodes())])
        found = _Checks(waiting, able)
        return found if found.choose(out) else None

    def _take_checks(self, session: Session, wanted: _Checks, now: datetime) -> tuple[list[_Message], bool]:
        """Mark checks as sent, as many as nodes have room for; whether there may be more for them."""
        if not checks.sends_alone(session):
            return [], True
        chosen = wanted.choose(checks.out(session, now, self.turns))
        messages = [
            _Message(check.id, VALIDATE_TASK, queue, check.job_id, check.sends) for check, queue in chosen
        ]
        taken = self._take(session, messages, now)
        projects = {check.id: check.project for check, _ in chosen}
        for turn, message in enumerate(taken, start=max(self.turns.values(), default=0) + 1):
            self.turns[projects[message.id]] = turn
        return taken, len(taken) < len(chosen) or len(chosen) == _BATCH

    def _take(self, session: Session, due: Sequence[_Message], now: datetime) -> list[_Message]:
        """Mark messages as sent, unless another replica did or they have been settled; which were marked."""
        groups: dict[tuple[bool, bool, int], list[_Message]] = defaultdict(list)
        for message in due:
            groups[message.task == VALIDATE_TASK, message.queue is not None, message.sends].append(message)
        taken: set[int] = set()
        for (check, possible, sends), alike in groups.items():
            ids = [message.id for message in alike]
            unchanged = Outbox.id.in_(ids), Outbox.sends == sends, Outbox.done_at.is_(None)
            pause = self._pause(sends) if possible else timedelta(seconds=self.settings.poll_s)
            free = _not_held(*unchanged, Outbox.next_send_at <= now)
            mark = update(Outbox).where(free).values(next_send_at=now + pause, sends=sends + possible)
            if check:
                mark = mark.values(queue=case({one.id: one.queue for one in alike}, value=Outbox.id))
            marked = session.execute(mark.returning(Outbox.id).execution_options(synchronize_session=False))
            if possible:
                taken.update(marked.scalars())
        return [message for message in due if message.id in taken]

    def _pause(self, sends: int) -> timedelta:
        return timedelta(seconds=min(self.settings.resend_s * 2 ** min(sends, 16), LONGEST_RESEND_S))

    def _put_back(self, messages: Sequence[_Message], error: BrokerDownError) -> None:
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


def _due(session: Session, now: datetime, nodes: Callable[[], _Known]) -> list[_Message]:
    """Messages that are due, besides checks, with the queues of nodes to act on them; read without a lock."""
    query = (
        select(Outbox.id, Outbox.task, Outbox.queue, Outbox.subject, Outbox.sends)
        .where(Outbox.task != VALIDATE_TASK, Outbox.done_at.is_(None), Outbox.next_send_at <= now)
        .order_by(Outbox.id)
        .limit(_BATCH)
    )
    found = [_Message(*row) for row in session.execute(query)]
    if all(message.queue for message in found):
        return found
    anyone = [node_queue(node.id) for node in nodes()[0] if node.closed is None]
    return [
        message
        if message.queue or not anyone
        else replace(message, queue=anyone[(message.id + message.sends) % len(anyone)])  # round robin
        for message in found
    ]
