"""The way into the audit log: with the change or not at all, in one chain, and never out again."""

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DatabaseError

from powermean.audit_chain import START, sign_head
from powermean.contracts.audit import AuditEvent
from powermean.tokens import KeyPair, ensure_key_pair
from server import __main__
from server.audit import journal, reading
from server.audit.journal import Journal, note
from server.db.models import AuditEntry, AuditPending, Node
from server.db.session import Database, database_now
from tests.support.service_driver import ServiceDriver


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return ensure_key_pair(tmp_path / "secrets")


@pytest.fixture
def log(database: Database, keys: KeyPair, tmp_path: Path) -> Journal:
    return Journal(database, keys, tmp_path / "secrets")


def event(target: str = "n", **more: object) -> AuditEvent:
    fields = {
        "at": datetime.now(UTC),
        "verb": "cluster.change",
        "request": "POST /v1/x",
        "outcome": "allowed",
    }
    return AuditEvent.model_validate(fields | {"target": target} | more)


def add_node(database: Database, name: str) -> None:
    with database.write() as session:
        session.add(Node(id=name, report={}, seen_at=database_now(session)))


def rows(database: Database, kind: type = AuditEntry) -> int:
    with database.read() as session:
        return session.scalar(select(func.count()).select_from(kind)) or 0


def targets(database: Database) -> list[str | None]:
    with database.read() as session:
        return list(session.scalars(select(AuditEntry.target).order_by(AuditEntry.seq)))


def test_an_event_is_committed_with_its_change(database: Database, log: Journal) -> None:
    with log.recording(event("a")):
        add_node(database, "a")
    assert rows(database, AuditPending) == 1
    assert log.turn() is False
    assert (rows(database, AuditPending), targets(database)) == (0, ["a"])


def test_without_the_change_there_is_no_event(database: Database, log: Journal) -> None:
    def fail() -> None:
        with database.write() as session:
            session.add(Node(id="a", report={}, seen_at=database_now(session)))
            raise RuntimeError

    with log.recording(event()), pytest.raises(RuntimeError):
        fail()
    log.seal()
    assert (rows(database), rows(database, AuditPending), rows(database, Node)) == (0, 0, 0)


def test_the_first_transaction_of_a_request_has_its_event(database: Database, log: Journal) -> None:
    with log.recording(event()):
        add_node(database, "a")
        add_node(database, "b")
    add_node(database, "c")
    log.seal()
    assert rows(database) == 1


def test_what_a_dead_server_left_is_sealed_by_the_next(
    database: Database, keys: KeyPair, tmp_path: Path
) -> None:
    """It was killed after its commit; another one looks for what was left."""
    now = [0.0]
    living = Journal(database, keys, tmp_path / "secrets", clock=lambda: now[0])
    living.seal()
    dead = Journal(database, keys, tmp_path / "secrets")  # records, and never seals
    with dead.recording(event("left")):
        add_node(database, "a")
    living.turn()
    assert rows(database) == 0
    now[0] += journal.LOOK_S + 1
    living.turn()
    assert targets(database) == ["left"]


@pytest.mark.parametrize("kind", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_a_turn_just_before_the_commit_forgets_nothing(database: Database, log: Journal) -> None:
    turns: list[bool] = []

    def turn_in_between(_: object) -> None:
        if not turns:
            turns.append(True)
            with ThreadPoolExecutor(1) as pool:
                pool.submit(log.turn).result()

    database.before_commit(turn_in_between)
    with log.recording(event("a")):
        add_node(database, "a")
    assert targets(database) == []
    log.turn()
    assert targets(database) == ["a"]


def test_more_than_a_batch_is_sealed_in_turns(
    database: Database, log: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal, "BATCH", 3)
    for number in range(7):
        with log.recording(event(str(number))):
            add_node(database, str(number))
    assert log.turn() is True
    assert rows(database) == 3
    log.seal()
    assert targets(database) == [str(number) for number in range(7)]


def test_refusals_wait_until_the_database_is_back(
    database: Database, log: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    log.refused(event("r", outcome="refused", status=403, actor="person-1"))
    with monkeypatch.context() as patch:
        patch.setattr(database, "write_as", _gone)
        with pytest.raises(ConnectionError):
            log.turn()
    log.turn()
    assert targets(database) == ["r"]


def _gone(*_: object) -> None:
    raise ConnectionError


@pytest.mark.slow
def test_servers_that_write_at_once_make_one_chain(database_url: str, keys: KeyPair, tmp_path: Path) -> None:
    """Four servers, each with requests and its own loop that seals."""
    servers = []
    for number in range(4):
        opened = Database(database_url)
        servers.append((number, opened, Journal(opened, keys, tmp_path / "secrets")))
    over = threading.Event()

    def seal_until_the_end(log: Journal) -> None:
        while not over.is_set():
            log.seal()

    def work(number: int, opened: Database, log: Journal) -> None:
        for count in range(20):
            with log.recording(event(f"{number}-{count}")):
                add_node(opened, f"{number}-{count}")
            log.refused(event("r", outcome="refused", status=403, actor=f"{number}-{count}"))

    with ThreadPoolExecutor(8) as pool:
        sealing = [pool.submit(seal_until_the_end, log) for _, _, log in servers]
        working = [pool.submit(work, *one) for one in servers]
        for one in working:
            one.result()
        over.set()
        for one in sealing:
            one.result()
    for _, opened, log in servers:
        log.stop()
        log.seal()
        verdict = reading.verify(opened, log._head)
        assert verdict.broken is None
    found = targets(servers[0][1])
    assert sorted(one for one in found if one != "r") == sorted(
        f"{number}-{count}" for number in range(4) for count in range(20)
    )
    for _, opened, _ in servers:
        opened.close()


def test_of_servers_that_share_a_folder_the_slower_keeps_no_older_head(
    database: Database, log: Journal, keys: KeyPair
) -> None:
    with log.recording(event()):
        add_node(database, "n")
    log.seal()
    newest = journal.read_head(log._head_file)
    log._keep(sign_head(keys.private_pem, 0, START))  # of a server that was held up after its commit
    assert journal.read_head(log._head_file) == newest


@pytest.fixture
def written(database: Database, log: Journal) -> Journal:
    """A log with five entries."""
    for number in range(5):
        with log.recording(event(str(number))):
            add_node(database, str(number))
            note(role="x")
    log.seal()
    return log


@pytest.mark.parametrize(
    "statement",
    ["UPDATE audit_entries SET target = 'x' WHERE seq = 2", "DELETE FROM audit_entries WHERE seq = 2"],
)
def test_the_database_refuses_to_change_or_delete(
    database: Database, written: Journal, statement: str
) -> None:
    with pytest.raises(DatabaseError, match="append-only"), database.write() as session:
        session.execute(text(statement))
    assert reading.verify(database, written._head).broken is None


@pytest.mark.parametrize("kind", [pytest.param("postgres", marks=pytest.mark.postgres)], indirect=True)
def test_postgres_refuses_to_empty_the_table(database: Database, written: Journal) -> None:
    with pytest.raises(DatabaseError, match="append-only"), database.write() as session:
        session.execute(text("TRUNCATE audit_entries"))


def tamper(database: Database, *statements: str) -> None:
    """As somebody who owns the database can."""
    with database.write() as session:
        if database.engine.dialect.name == "sqlite":
            for what in ("update", "delete"):
                session.execute(text(f"DROP TRIGGER IF EXISTS audit_entries_no_{what}"))
        else:
            session.execute(text("ALTER TABLE audit_entries DISABLE TRIGGER ALL"))
        for statement in statements:
            session.execute(text(statement))


TAMPERED = {
    "changed": ("UPDATE audit_entries SET actor = 'x' WHERE seq = 3",),
    "removed": ("DELETE FROM audit_entries WHERE seq = 3",),
    "time": ("UPDATE audit_entries SET at = '2020-01-01 00:00:00' WHERE seq = 3",),
    "detail": ('UPDATE audit_entries SET detail = \'{"role": "y"}\' WHERE seq = 3',),
}


@pytest.mark.parametrize("how", TAMPERED)
def test_the_walk_names_the_entry(database: Database, written: Journal, how: str) -> None:
    tamper(database, *TAMPERED[how])
    broken = reading.verify(database, None).broken
    assert broken is not None
    assert broken.seq == 3


def test_an_end_that_was_cut_off_is_found(database: Database, written: Journal) -> None:
    head = written._head
    tamper(database, "DELETE FROM audit_entries WHERE seq > 3")
    assert str(reading.verify(database, None).broken) != "None"  # the head's row names a later one
    with database.read() as session:
        third = session.get_one(AuditEntry, 3).hash
    tamper(database, f"UPDATE audit_head SET seq = 3, hash = '{third}'")
    assert reading.verify(database, None).broken is None  # nothing in the database shows it
    broken = reading.verify(database, head).broken
    assert broken is not None
    assert broken.seq == 4


def test_the_kept_head_survives_what_it_proves(
    database: Database, written: Journal, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """After a cut the server goes on, and does not replace the file that shows it."""
    file = tmp_path / "secrets" / journal.HEAD_FILE
    before = file.read_text()
    with database.read() as session:
        third = session.get_one(AuditEntry, 3).hash
    cut = "DELETE FROM audit_entries WHERE seq > 3"
    tamper(database, cut, f"UPDATE audit_head SET seq = 3, hash = '{third}'")
    for number in range(3):
        with written.recording(event("later")):
            add_node(database, f"later-{number}")
        written.seal()
    assert rows(database) == 6
    assert file.read_text() == before
    assert "run `python -m server verify-audit`" in caplog.text
    file.rename(tmp_path / "evidence")
    written.seal()
    with written.recording(event("anew")):
        add_node(database, "anew")
    written.seal()
    assert reading.verify(database, journal.read_head(file)).broken is None


@pytest.fixture
def command(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of `python -m server` for this service."""
    monkeypatch.setenv("POWERMEAN_DATABASE_URL", service.settings.database_url)
    monkeypatch.setenv("POWERMEAN_SECRETS_DIR", str(service.settings.secrets_dir))


@pytest.mark.usefixtures("command")
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_the_command_says_whether_it_is_whole(
    service: ServiceDriver,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for _ in range(3):
        service.submit()
    service.app.state.journal.seal()
    with service.database.read() as session:
        head = service.app.state.journal.head(session)
    count = head.seq
    assert __main__.main(["verify-audit"]) == 0
    assert capsys.readouterr().out == f"{count} entries are unbroken, up to {count} as signed\n"
    forged = tmp_path / "forged.json"
    forged.write_text(head.model_copy(update={"seq": 1}).model_dump_json())
    assert __main__.main(["verify-audit", "--head", str(forged)]) == 1
    assert "is not signed by this server's key" in capsys.readouterr().err
    assert __main__.main(["verify-audit", "--head", str(tmp_path / "none")]) == 1
    tamper(service.database, "UPDATE audit_entries SET target = 'x' WHERE seq = 2")
    capsys.readouterr()
    assert __main__.main(["verify-audit"]) == 1
    assert capsys.readouterr().out == "entry 2 was changed: its hash is another one's\n"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("POWERMEAN_SECRETS_DIR", str(elsewhere))
    archive = ["archive-audit", "--before", "2020-01-01", "--folder", str(tmp_path)]
    for command, name in ((["verify-audit"], "attempt_token.pub"), (archive, "attempt_token.key")):
        assert __main__.main(command) == 1
        assert f"{elsewhere} has no {name}" in capsys.readouterr().err
    assert not any(elsewhere.iterdir())


def test_an_unreadable_head_is_none(tmp_path: Path) -> None:
    file = tmp_path / "head.json"
    assert journal.read_head(file) is None
    file.write_text("{")
    assert journal.read_head(file) is None
    file.write_text(sign_head(ensure_key_pair(tmp_path).private_pem, 1, "0" * 64).model_dump_json())
    assert journal.read_head(file) is not None
