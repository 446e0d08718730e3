"""SQLite's writers of this process: they take turns in order of arrival, and those that queue share a commit.

SQLite has one writer, and each commit waits for the disk. So a writer that finds others behind it leaves the
transaction open for the next one, and the last of the group commits for all. Each is a savepoint: one that
fails undoes its own work alone, and none returns before the commit.
"""

import sqlite3
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import OperationalError

GROUP_S = 0.02  # how long a group takes in more writers


class QueueTimeoutError(Exception):
    """The turn did not come in time."""


class _Group:
    """Writers that share a transaction and its commit."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.closes_at = time.monotonic() + GROUP_S
        self.over = threading.Event()
        self.error: Exception | None = None


class WriteQueue:
    """The line of writers. `engine` begins writing transactions."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._taken = False
        self._waiting: deque[threading.Event] = deque()
        self._group: _Group | None = None

    @contextmanager
    def turn(self, timeout_s: float) -> Iterator[Connection]:
        """A connection in a transaction that this thread alone uses, in a savepoint of its own.

        Returns once it is committed. Raises QueueTimeoutError, and what the commit raises.
        """
        self._await_turn(timeout_s)
        try:
            group = self._group = self._group or self._open()
        except BaseException:
            self._pass_turn()
            raise
        try:
            yield group.connection
        finally:
            self._leave(group)
        group.over.wait()
        if group.error is not None:
            raise group.error

    def _open(self) -> _Group:
        connection = self._engine.connect()
        try:
            connection.begin()
        except BaseException:
            connection.close()
            raise
        return _Group(connection)

    def _leave(self, group: _Group) -> None:
        """Leave the group to the next in line, or commit it."""
        lost = not _in_transaction(group.connection)
        if self._waiting and time.monotonic() < group.closes_at and not lost:
            self._pass_turn()
            return
        self._group = None
        try:
            if lost:  # SQLite itself rolls back when the disk is full
                raise OperationalError("COMMIT", None, sqlite3.OperationalError("the transaction is gone"))
            group.connection.commit()
        except Exception as error:
            group.error = error  # for all who wrote in it
            raise
        finally:
            group.connection.close()
            group.over.set()
            self._pass_turn()

    def _await_turn(self, timeout_s: float) -> None:
        mine = threading.Event()
        with self._lock:
            if not self._taken:
                self._taken = True
                return
            self._waiting.append(mine)
        if mine.wait(timeout_s):
            return
        with self._lock:
            if mine.is_set():
                return
            self._waiting.remove(mine)
        raise QueueTimeoutError

    def _pass_turn(self) -> None:
        with self._lock:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._taken = False


def _in_transaction(connection: Connection) -> bool:
    return bool(getattr(connection.connection.dbapi_connection, "in_transaction", False))
