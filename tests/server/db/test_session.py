"""Transactions, the database's clock and the upsert, alike on both databases."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import event, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, StatementError

from server.db import session as sessions
from server.db import write_queue
from server.db.inserts import upsert
from server.db.migrate import migrate
from server.db.models import Attempt, Leader, Node
from server.db.session import (
    STOPPED_SQLSTATE,
    Changes,
    Database,
    DatabaseBusyError,
    DatabaseFullError,
    changes,
    database_now,
)
from tests.support.small_disk import fill, small_disk


def put(database: Database, *ids: str) -> None:
    with database.write() as session:
        now = database_now(session)
        session.add_all(Node(id=node_id, report={}, seen_at=now) for node_id in ids)


def ids(database: Database) -> list[str]:
    with database.read() as session:
        return list(session.execute(select(Node.id).order_by(Node.id)).scalars())


def test_a_failed_transaction_leaves_nothing(database: Database):
    def fail() -> None:
        with database.write() as session:
            session.add(Node(id="a", report={}, seen_at=database_now(session)))
            session.flush()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert ids(database) == []


@pytest.mark.slow
def test_on_a_full_disk_the_ballast_makes_room_for_the_next_transaction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sessions, "BALLAST_BYTES", 2**20)
    monkeypatch.setattr(sessions, "BALLAST_PAUSE_S", 0.0)
    with small_disk(tmp_path / "small", 2**23) as folder:
        database = Database(f"sqlite:///{folder / 'server.db'}")
        migrate(database)
        database.hold_ballast()
        ballast = folder / "server.db.ballast"
        assert ballast.stat().st_size == 2**20
        filling = fill(folder)
        with pytest.raises(DatabaseFullError, match="the disk of the database is full"):
            put(database, *(f"{number:064}" for number in range(5000)))
        put(database, "a heartbeat")
        assert ids(database) == ["a heartbeat"]
        assert not ballast.exists()
        filling.unlink()
        put(database, "there is room again")
        assert ballast.exists()
        database.close()


def test_a_reader_neither_sees_nor_stops_an_open_writer(database: Database):
    with database.write() as session:
        session.add(Node(id="a", report={}, seen_at=database_now(session)))
        session.flush()
        assert ids(database) == []
    assert ids(database) == ["a"]


def test_reading_writes_nothing(database: Database):
    with database.read() as session:
        session.add(Node(id="a", report={}, seen_at=database_now(session)))
        session.flush()
    assert ids(database) == []


def test_writers_in_a_crowd_lose_no_update(database: Database):
    put(database, "counter")

    def count(_: int) -> None:
        with database.write() as session:
            query = select(Node).where(Node.id == "counter").with_for_update()
            node = session.execute(query).scalar_one()
            node.report = {"n": node.report.get("n", 0) + 1}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(count, range(40)))
    with database.read() as session:
        assert session.get_one(Node, "counter").report == {"n": 40}


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_writer_gives_up_waiting_in_time(database: Database, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sessions, "BUSY_TIMEOUT_S", 0.05)
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with database.write():
            holding.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    assert holding.wait(10)
    with pytest.raises(DatabaseBusyError), database.write():
        pass
    done.set()
    thread.join(10)
    put(database, "a")


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_sqlite_is_set_up_to_keep_what_it_acknowledged(database: Database):
    with database.read() as session:
        found = {
            name: session.execute(text(f"PRAGMA {name}")).scalar_one()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        }
    assert found == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1, "busy_timeout": 15000}


@pytest.mark.slow
def test_servers_that_make_a_new_sqlite_file_together_wait_for_each_other(tmp_path: Path):
    """Setting its journal mode is refused at once while another does, whatever the busy timeout."""
    for number in range(30):
        together = threading.Barrier(8)

        def use_it(url: str, together: threading.Barrier = together) -> None:
            opened = Database(url)
            together.wait(10)
            with opened.write() as session:
                session.execute(text("SELECT 1"))
            opened.close()

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(use_it, [f"sqlite:///{tmp_path}/{number}.db"] * 8))


def test_foreign_keys_hold(database: Database):
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(
            Attempt(id="x.1", job_id="x", number=1, state="starting", created_at=database_now(session))
        )


def test_the_databases_clock_is_utc_and_runs_within_a_transaction(database: Database):
    with database.write() as session:
        first = database_now(session)
        assert abs(first - datetime.now(UTC)) < timedelta(minutes=1)
        assert first.utcoffset() == timedelta(0)
        while database_now(session) == first:
            pass


def test_moments_come_back_as_they_went_in(database: Database):
    moment = datetime(2030, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    with database.write() as session:
        session.add(Leader(name="a", holder="b", expires_at=moment))
    with database.read() as session:
        assert session.get_one(Leader, "a").expires_at == moment


def test_a_moment_without_a_zone_is_refused(database: Database):
    with pytest.raises(StatementError, match="time zone"), database.write() as session:
        session.add(Leader(name="a", holder="b", expires_at=datetime(2030, 1, 1)))


def test_upsert_replaces_what_it_is_told_to(database: Database):
    early, late = datetime(2030, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)

    def write(holder: str, at: datetime, *replace: str) -> tuple[str, datetime]:
        with database.write() as session:
            row = {"name": "a", "holder": holder, "expires_at": at}
            upsert(session, Leader, [row], replace=replace)
        with database.read() as session:
            found = session.get_one(Leader, "a")
            return found.holder, found.expires_at

    assert write("one", early) == ("one", early)
    assert write("two", late) == ("one", early)
    assert write("two", late, "holder") == ("two", early)
    assert write("three", late, "holder", "expires_at") == ("three", late)


def test_listeners_hear_of_commits_alone(database: Database):
    heard: list[Changes] = []

    def fail() -> None:
        with database.write() as session:
            changes(session).plan = True
            raise ZeroDivisionError

    database.listen(heard.append)
    put(database, "a")
    with database.write() as session:
        changes(session).jobs.add("job-1")
        assert heard == []
    with pytest.raises(ZeroDivisionError):
        fail()
    assert heard == [Changes(jobs={"job-1"})]


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_writers_that_queue_share_a_commit_and_a_failed_one_undoes_its_own_work_alone(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(write_queue, "GROUP_S", 10)
    commits: list[object] = []
    event.listen(database.engine, "commit", commits.append)
    first_writes, all_queue = threading.Event(), threading.Event()

    def write(name: str) -> None:
        with database.write() as session:
            session.add(Node(id=name, report={}, seen_at=database_now(session)))
            session.flush()
            if name == "first":
                first_writes.set()
                all_queue.wait(10)
            if name == "fails":
                raise ZeroDivisionError

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(write, "first")
        assert first_writes.wait(10)
        others = [pool.submit(write, name) for name in ("fails", "second", "third")]
        while len(database._queue._waiting) < 3:
            time.sleep(0.001)
        all_queue.set()
        assert [one.exception() is None for one in (first, *others)] == [True, False, True, True]
    assert ids(database) == ["first", "second", "third"]
    assert len(commits) == 1


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_no_writer_of_a_group_returns_when_its_commit_fails(
    database: Database, monkeypatch: pytest.MonkeyPatch
):
    """SQLite rolls back by itself where it must: then the writers before have lost their work, too."""
    monkeypatch.setattr(write_queue, "GROUP_S", 10)
    first_writes, second_queues = threading.Event(), threading.Event()

    def write(name: str) -> None:
        with database.write() as session:
            session.add(Node(id=name, report={}, seen_at=database_now(session)))
            session.flush()
            if name == "first":
                first_writes.set()
                second_queues.wait(10)
            else:
                session.connection().connection.rollback()

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(write, "first")
        assert first_writes.wait(10)
        second = pool.submit(write, "second")
        while not database._queue._waiting:
            time.sleep(0.001)
        second_queues.set()
        assert isinstance(first.exception(), OperationalError)
        assert second.exception() is not None
    assert ids(database) == []
    put(database, "third")
    assert ids(database) == ["third"]


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_a_statement_has_an_end_and_a_migration_has_none(empty_url: str) -> None:
    limited, free = Database(empty_url, statement_s=0.2), Database(empty_url)
    with limited.read() as session, pytest.raises(OperationalError, match="statement timeout") as stopped:
        session.execute(text("SELECT pg_sleep(30)"))
    assert getattr(stopped.value.orig, "sqlstate", None) == STOPPED_SQLSTATE
    with limited.read() as session:  # the connection is good for others
        assert session.scalar(text("SELECT 1")) == 1
    with free.read() as session:
        assert session.scalar(text("SHOW statement_timeout")) == "0"
        assert session.scalar(text("SHOW idle_in_transaction_session_timeout")) == "0"
    limited.close()
    free.close()
