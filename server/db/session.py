"""Connections and transactions, the same for SQLite and Postgres.

A request or a task is one transaction, and only its boundary (a route, a loop's turn) opens and commits one:

    with database.write() as session:
        ...

SQLite has one writer: a writing transaction takes the write lock at its start (BEGIN IMMEDIATE), so that two
writers wait for each other instead of failing half-way; write_queue.py has the writers of one process take
turns. On Postgres the same code locks rows.
"""

import math
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from sqlalchemy import (
    Connection,
    Engine,
    bindparam,
    create_engine,
    event,
    func,
    make_url,
    select,
    text,
)
from sqlalchemy.engine.interfaces import DBAPIConnection, DBAPICursor, ExceptionContext
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from powermean.disk import Ballast
from powermean.errors import PowermeanError
from server.db.write_queue import QueueTimeoutError, WriteQueue

BUSY_TIMEOUT_S = 15.0
BALLAST_BYTES = 32 * 2**20
BALLAST_PAUSE_S = 30.0
IDLE_S = 15.0  # a server that is frozen within a transaction holds its locks for so long, on Postgres
IDLE_SQLSTATE = "25P03"  # idle_in_transaction_session_timeout
LOCKED_SQLSTATE = "55P03"  # lock_timeout
STOPPED_SQLSTATE = "57014"  # statement_timeout, or an administrator of Postgres
# A host that went away without a word is found out after 15 s, not after a quarter of an hour.
_LOST_CONNECTIONS = {
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 15_000,
}
_NOW = select(func.clock_timestamp())
_NOW_AND_LOCKS = select(func.clock_timestamp(), func.set_config("lock_timeout", bindparam("ms"), True))
S = TypeVar("S", bound=Session)
_WRITES = "powermean_writes"
_CHANGES = "powermean_changes"


class DatabaseFullError(PowermeanError):
    """The disk of SQLite's file is full. A repetition may succeed, because the ballast was released."""

    code = "disk_full"
    retryable = True


class DatabaseBusyError(PowermeanError):
    """The database's write lock could not be acquired in time."""


class DatabaseMovedError(PowermeanError):
    """The database's file is no longer at its address: what is written would be lost."""


@dataclass
class Changes:
    """What a transaction changed that others wait for; listeners are told after the commit."""

    jobs: set[str] = field(default_factory=set)  # jobs with new events or metrics
    plan: bool = False  # there may be something to schedule
    send: bool = False  # there is something to send
    swept: bool = False  # there are rows to remove
    callers: bool = False  # what keys stand for may be different
    elsewhere: bool = False  # another server made them, which also does what follows from them


def changes(session: Session) -> Changes:
    """The current transaction's changes; add to them."""
    found: Changes = session.info.setdefault(_CHANGES, Changes())
    return found


class Database:
    """An engine and its two kinds of transactions."""

    def __init__(self, url: str, statement_s: float | None = None) -> None:
        """`statement_s` is the longest that Postgres works at one statement; None: any time.

        With it Postgres also ends a transaction in which nothing happens for IDLE_S.
        """
        self.engine = _create_engine(url, statement_s)
        self._file = _File(self.engine)
        self._writing_engine = self.engine.execution_options(**{_WRITES: True})
        self._queue = WriteQueue(self._writing_engine) if self.engine.dialect.name == "sqlite" else None
        self._listeners: list[Callable[[Changes], None]] = []
        self._last_words: list[Callable[[Session], None]] = []
        self._ballast = _ballast(self.engine)
        self._released_at: float | None = None

    def hold_ballast(self) -> None:
        """Hold back space beside a SQLite file, so that on a full disk jobs can still be told of it."""
        if self._ballast is not None:
            self._ballast.hold()

    def listen(self, listener: Callable[[Changes], None]) -> None:
        """Call `listener` after each commit with changes, in the committing thread; it must be quick."""
        self._listeners.append(listener)

    def before_commit(self, add: Callable[[Session], None]) -> None:
        """Call `add` in each writing transaction, as the last thing before it commits."""
        self._last_words.append(add)

    def write(self) -> AbstractContextManager[Session]:
        """A transaction that may write: committed at the end, rolled back on an exception.

        Raises:
            DatabaseBusyError: SQLite's write lock was not free within BUSY_TIMEOUT_S.
            DatabaseFullError: there is no room on SQLite's disk.
            DatabaseMovedError: the file was moved or replaced; nothing was written.
        """
        return self.write_as(Session)

    @contextmanager
    def write_as(self, kind: type[S]) -> Iterator[S]:
        """write() with a session of this class."""
        with (
            self._full_disk(),
            self._writer() as bind,
            kind(bind, expire_on_commit=False, join_transaction_mode="create_savepoint") as session,
            session.begin(),
        ):
            yield session
            for add in self._last_words:
                add(session)
            self._file.check()
        changed = session.info.get(_CHANGES)
        if changed is not None:
            self.tell(changed)

    def tell(self, changed: Changes) -> None:
        """Tell the listeners what was committed."""
        for listener in self._listeners:
            listener(changed)

    @contextmanager
    def rebuild(self) -> Iterator[Connection]:
        """A writing transaction for migrations, which may replace a table that others refer to.

        SQLite takes the replaced table's rows for deleted, so references are checked at the end instead.
        """
        with self._writing_engine.connect() as connection:
            sqlite = connection.dialect.name == "sqlite"
            if sqlite:
                connection.detach()  # from the pool: the next line is for this connection alone
                _execute_outside(connection, "PRAGMA foreign_keys = OFF")
            with connection.begin():
                yield connection
                if sqlite and (broken := connection.exec_driver_sql("PRAGMA foreign_key_check").fetchall()):
                    raise PowermeanError(f"the migration would leave broken references: {broken[:5]}")

    def read(self) -> AbstractContextManager[Session]:
        """A transaction that only reads: one consistent view on SQLite, never committed."""
        return self.read_as(Session)

    @contextmanager
    def read_as(self, kind: type[S]) -> Iterator[S]:
        """read() with a session of this class."""
        with kind(self.engine, expire_on_commit=False, autoflush=False) as session:
            yield session

    def verify(self) -> None:
        """Raises DatabaseMovedError or SQLAlchemyError unless this is the database that the server opened."""
        with self.read() as session:
            session.execute(text("SELECT version_num FROM alembic_version"))
        self._file.check()

    @contextmanager
    def _full_disk(self) -> Iterator[None]:
        """Give up the ballast where the disk is full, and take it again when there has been room."""
        try:
            yield
        except OperationalError as error:
            if self._ballast is None or not _says_full(error):
                raise
            self._ballast.release()
            self._released_at = time.monotonic()
            raise DatabaseFullError(f"the disk of the database is full: {error.orig}") from error
        if self._released_at is not None and time.monotonic() - self._released_at > BALLAST_PAUSE_S:
            self._released_at = time.monotonic()
            self.hold_ballast()

    @contextmanager
    def _writer(self) -> Iterator[Engine | Connection]:
        """What a writing session is bound to; on SQLite this process's writers queue for it."""
        if self._queue is None:
            yield self._writing_engine
            return
        try:
            with self._queue.turn(BUSY_TIMEOUT_S) as connection:
                yield connection
        except QueueTimeoutError as error:
            raise DatabaseBusyError(f"other writers held the database for {BUSY_TIMEOUT_S:.0f} s") from error

    def close(self) -> None:
        """Close the pooled connections."""
        self.engine.dispose()


def _execute_outside(connection: Connection, statement: str) -> None:
    """Run a statement that has no effect within a transaction."""
    cursor = connection.connection.cursor()
    cursor.execute(statement)
    cursor.close()


def _ballast(engine: Engine) -> Ballast | None:
    file = engine.url.database
    if engine.dialect.name != "sqlite" or not file or file == ":memory:":
        return None
    return Ballast(Path(f"{file}.ballast"), BALLAST_BYTES)


def _says_full(error: OperationalError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)  # the latter where it extends shared memory


class _File:
    """Which file SQLite opened at its address. Open connections go on with it, wherever it is moved."""

    def __init__(self, engine: Engine) -> None:
        self._path = engine.url.database if engine.dialect.name == "sqlite" else None
        self._opened: tuple[int, int] | None = None
        if self._path is not None:
            event.listen(engine, "connect", self._remember)

    def check(self) -> None:
        """Raises DatabaseMovedError."""
        if self._opened is not None and self._there() != self._opened:
            raise DatabaseMovedError(
                f"{self._path} was moved or replaced while the server had it open",
                remedy="Put it back, or restart the server.",
            )

    def _remember(self, _connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
        if self._opened is None:
            self._opened = self._there()

    def _there(self) -> tuple[int, int] | None:
        try:
            found = os.stat(self._path or "")
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino


def _create_engine(url: str, statement_s: float | None) -> Engine:
    if make_url(url).get_backend_name() == "sqlite":
        engine = create_engine(url, pool_size=20, max_overflow=30, connect_args={"check_same_thread": False})
        event.listen(engine, "connect", _set_up_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    options = "-c timezone=UTC -c lock_timeout=15s"
    if statement_s is not None:
        options += f" -c statement_timeout={math.ceil(statement_s * 1000)}ms"
        options += f" -c idle_in_transaction_session_timeout={math.ceil(IDLE_S * 1000)}ms"
    engine = create_engine(
        url,
        pool_size=10,
        max_overflow=20,
        pool_pre_ping=True,
        connect_args={"connect_timeout": 10, "options": options} | _LOST_CONNECTIONS,
    )
    event.listen(engine, "handle_error", _tell_of_the_thaw, retval=True)
    return engine


def _tell_of_the_thaw(context: ExceptionContext) -> BaseException | None:
    """A transaction that Postgres ended for its idleness: psycopg calls that an internal error."""
    error = context.original_exception
    if getattr(error, "sqlstate", None) == IDLE_SQLSTATE:
        return OperationalError(context.statement, context.parameters, error)
    return None


def _set_up_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # _begin_sqlite begins transactions, never the driver
    cursor = connection.cursor()
    cursor.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    _use_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _use_wal(cursor: DBAPICursor) -> None:
    """Changing a new file's mode needs exclusive access, for which SQLite does not wait as for a lock."""
    deadline = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY  # of any kind
            if not busy or time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def database_now(session: Session, lock_ms: int | None = None) -> datetime:
    """The database's clock. It alone decides about leases, because servers' clocks differ.

    SQLite runs in this process, so its clock is ours. With `lock_ms` later statements of the transaction wait
    for so long at most for others' locks, on Postgres, and then fail.
    """
    if session.get_bind().dialect.name == "sqlite":
        return datetime.now(UTC)
    connection = session.connection()  # past the session, which would write its changed objects first
    if lock_ms is None:
        moment: datetime = connection.execute(_NOW).scalar_one()
    else:
        moment = connection.execute(_NOW_AND_LOCKS, {"ms": str(lock_ms)}).scalar_one()
    return moment.astimezone(UTC)
