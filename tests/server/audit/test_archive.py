"""The oldest entries go into a file and out of the database, and the chain is checked across the cut."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DatabaseError

from powermean.contracts.audit import AuditEvent
from powermean.tokens import KeyPair, ensure_key_pair
from server import __main__
from server.audit import archive as archiving
from server.audit import reading
from server.audit.archive import ArchiveError, archive
from server.audit.journal import HEAD_FILE, Journal, read_head
from server.db.models import Node
from server.db.session import Database, database_now
from tests.support.live_server import listening
from tests.support.service_driver import ADMIN_KEY, ServiceDriver
from tests.support.terminal import powermean

DAY = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def keys(tmp_path: Path) -> KeyPair:
    return ensure_key_pair(tmp_path / "secrets")


@pytest.fixture
def log(database: Database, keys: KeyPair, tmp_path: Path) -> Journal:
    """Six entries, one a day."""
    journal = Journal(database, keys, tmp_path / "secrets")
    for number in range(6):
        write(database, journal, number)
    return journal


def write(database: Database, journal: Journal, number: int) -> None:
    at = DAY + timedelta(days=number)
    event = AuditEvent(at=at, verb="cluster.change", request="POST /v1/x", outcome="allowed")
    with journal.recording(event), database.write() as session:
        session.add(Node(id=str(number), report={}, seen_at=database_now(session)))
    journal.seal()


def numbers(database: Database) -> list[int]:
    with database.read() as session:
        return list(session.scalars(text("SELECT seq FROM audit_entries ORDER BY seq")))


@pytest.mark.slow
def test_the_chain_goes_on_across_the_cut(
    database: Database, log: Journal, keys: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archiving, "BATCH", 2)
    early = read_head(tmp_path / "secrets" / HEAD_FILE)
    first = archive(database, keys, log._head, tmp_path, DAY + timedelta(days=3))
    assert first is not None
    assert (first.first, first.last, numbers(database)) == (1, 3, [4, 5, 6])
    assert [json.loads(line)["seq"] for line in first.file.open()] == [1, 2, 3]
    log.seal()
    assert numbers(database)[-1] == 7  # says what was archived
    assert archive(database, keys, log._head, tmp_path, DAY) is None
    second = archive(database, keys, log._head, tmp_path, DAY + timedelta(days=5))
    assert second is not None
    write(database, log, 6)
    here = reading.verify(database, log._head, public_pem=keys.public_pem)
    assert (here.broken, here.first, here.entries) == (None, 6, 9)
    assert "those before are archived" in here.said(log._head)
    whole = reading.verify(database, early, [first.file, second.file])
    assert (whole.broken, whole.first, whole.entries) == (None, 1, 9)
    later = reading.verify(database, read_head(second.head), [second.file])
    assert (later.broken, later.first) == (None, 4)
    gap = reading.verify(database, None, [first.file]).broken
    assert gap is not None
    assert gap.seq == 4
    before = reading.verify(database, read_head(first.head)).broken
    assert before is not None
    assert "name the archives" in before.what
    line = second.file.read_text().replace("cluster.change", "cluster.read", 1)
    second.file.write_text(line)
    forged = reading.verify(database, None, [first.file, second.file]).broken
    assert forged is not None
    assert "was changed" in forged.what


@pytest.mark.slow
def test_nothing_else_leaves_the_table_and_a_cut_without_the_key_is_found(
    database: Database, log: Journal, keys: KeyPair, tmp_path: Path
) -> None:
    archive(database, keys, log._head, tmp_path, DAY + timedelta(days=3))
    with pytest.raises(DatabaseError, match="append-only"), database.write() as session:
        session.execute(text("DELETE FROM audit_entries WHERE seq = 4"))
    log.seal()
    forged = "UPDATE audit_head SET cut_seq = 5, cut_hash = (SELECT hash FROM audit_entries WHERE seq = 5)"
    with database.write() as session:
        session.execute(text(forged))
        session.execute(text("DELETE FROM audit_entries WHERE seq <= 5"))
    broken = reading.verify(database, None, public_pem=keys.public_pem).broken
    assert broken is not None
    assert "without this server's signature" in broken.what
    with pytest.raises(ArchiveError, match="signature"):
        archive(database, keys, None, tmp_path, DAY + timedelta(days=9))


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_crash_before_the_cut_or_after_it_is_made_good_by_the_next_run(
    database: Database, log: Journal, keys: KeyPair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in ("_cut", "_remove_archived"):
        with monkeypatch.context() as patch:
            patch.setattr(archiving, step, killed)
            with pytest.raises(KeyboardInterrupt):
                archive(database, keys, log._head, tmp_path, DAY + timedelta(days=3))
        assert len(numbers(database)) == 6
        assert reading.verify(database, log._head, public_pem=keys.public_pem).broken is None
    assert archive(database, keys, log._head, tmp_path, DAY + timedelta(days=3)) is None
    assert numbers(database) == [4, 5, 6]


def killed(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_file_of_something_else_and_a_broken_log_remove_nothing(
    database: Database, log: Journal, keys: KeyPair, tmp_path: Path
) -> None:
    (tmp_path / "audit-1-3.jsonl").write_text("mine\n")
    with pytest.raises(ArchiveError, match="other contents"):
        archive(database, keys, log._head, tmp_path, DAY + timedelta(days=3))
    with database.write() as session:
        session.execute(text("DROP TRIGGER audit_entries_no_update"))
        session.execute(text("UPDATE audit_entries SET actor = 'x' WHERE seq = 5"))
    with pytest.raises(ArchiveError, match="entry 5 was changed"):
        archive(database, keys, log._head, tmp_path, DAY + timedelta(days=2))
    assert len(numbers(database)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_the_commands(
    service: ServiceDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("POWERMEAN_DATABASE_URL", service.settings.database_url)
    monkeypatch.setenv("POWERMEAN_SECRETS_DIR", str(service.settings.secrets_dir))
    for _ in range(3):
        service.submit()
    service.app.state.journal.seal()
    tomorrow = (datetime.now(UTC) + timedelta(days=1)).date().isoformat()
    run = ["archive-audit", "--folder", str(tmp_path), "--before"]
    with pytest.raises(SystemExit):  # in a container the folder that it runs in is lost
        __main__.main(["archive-audit", "--before", tomorrow])
    assert "archive-audit needs --folder" in capsys.readouterr().err
    assert __main__.main([*run, "2026-01-01"]) == 0
    assert capsys.readouterr().out == "the audit log has no entry from before 2026-01-01\n"
    assert __main__.main([*run, tomorrow]) == 0
    assert "which are no longer in the database" in capsys.readouterr().out
    (file,) = tmp_path.glob("audit-*.jsonl")
    service.app.state.journal.seal()
    assert __main__.main(["verify-audit"]) == 0
    assert "those before are archived" in capsys.readouterr().out
    assert __main__.main(["verify-audit", "--archive", str(file)]) == 0
    assert "entries are unbroken" in capsys.readouterr().out
    with listening(service.app) as url:
        monkeypatch.setenv("POWERMEAN_URL", url)
        monkeypatch.setenv("POWERMEAN_API_KEY", ADMIN_KEY)
        assert "those before are archived" in powermean("audit", "verify").stdout
        assert "on the server" in powermean("audit", "list", "--verb", "audit.archive").stdout
        whole = powermean(
            "audit", "verify", "--archive", str(file), "--head", str(file.with_suffix(".head.json"))
        )
        assert (whole.exit_code, "as signed" in whole.stdout) == (0, True), whole.output
        assert "is no entry of the audit log" in powermean("audit", "verify", "--archive", __file__).stderr
