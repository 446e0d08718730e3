"""What a backup holds, and when there is none."""

import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactStoreUnavailableError
from server.backup import __main__ as program
from server.backup import create as creating
from server.backup.create import Wanted, create
from server.backup.manifest import (
    BackupDamagedError,
    BackupError,
)
from server.backup.restore import verify
from server.db.models import Garbage
from server.db.session import Database
from server.errors import ConflictError
from server.storage import holds
from server.storage.collection import collect
from server.storage.holds import HoldLostError, held, is_held
from server.storage.references import every, owned
from tests.support.backups import ODD, Backups, quiet
from tests.support.small_disk import small_disk
from tests.support.stored_things import refs_below, store_of, sweep

# `powermean backup` is for SQLite; docs/backup.md says how Postgres is backed up.
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("kind", ["sqlite"], indirect=True)]


def test_every_lists_what_each_owner_has(backups: Backups) -> None:
    with backups.service.database.read() as session:
        found = {ref.key for ref in every(session)}
        owners = {tuple(key.split("/")[:2]) for key in found}
        assert found == {key for kind, owner in owners for key in owned(session, kind, owner)}


def test_keys_are_in_it_on_request_alone(backups: Backups) -> None:
    secrets_dir = backups.service.settings.secrets_dir
    private = (secrets_dir / "attempt_token.key").read_text().splitlines()[1]
    key_lines = (secrets_dir / "secrets.keys").read_text().split()[1]
    without, with_keys = backups.create("without"), backups.create("with", with_keys=True)
    assert not (without / "secrets").exists()
    assert (with_keys / "secrets" / "secrets.keys").read_text().split()[1] == key_lines
    for folder in (without, with_keys):
        assert folder.stat().st_mode & 0o777 == 0o700
        for path in folder.rglob("*"):
            if path.is_file():
                text = path.read_bytes()
                assert private.encode() not in text
                assert folder == with_keys or key_lines.encode() not in text
    restored = backups.home("one")
    backups.restore(with_keys, "one")
    assert (restored.secrets / "secrets.keys").read_bytes() == (secrets_dir / "secrets.keys").read_bytes()
    assert (restored.secrets / "attempt_token.key").read_text().splitlines()[1] != private


def test_the_database_is_of_one_moment_while_others_write(backups: Backups) -> None:
    """Writers go on during the copy, which does not begin again, and sees none of what they write."""
    service, stop = backups.service, threading.Event()
    file = backups.folder / "server.db"
    with closing(sqlite3.connect(file)) as side:
        side.execute("CREATE TABLE filling (id INTEGER PRIMARY KEY, text TEXT)")
        side.executemany("INSERT INTO filling VALUES (?, ?)", ((i, "x" * 4000) for i in range(6000)))
        side.commit()
    written, steps = [], []

    def write() -> None:
        while not stop.is_set():
            with service.database.write() as session:
                session.add(Garbage(key=f"probe/{len(written)}", created_at=datetime.now(UTC)))
            written.append(time.monotonic())

    def tell(what: str, done: int, total: int) -> None:
        if what == "database":
            steps.append(done)
            before = len(written)
            deadline = time.monotonic() + 10
            while len(written) == before and time.monotonic() < deadline:
                time.sleep(0.001)
            assert len(written) > before  # nobody is held up

    writer = threading.Thread(target=write)
    writer.start()
    try:
        target = backups.folder / "copy.db"
        creating._snapshot(file, target, tell)
    finally:
        stop.set()
        writer.join()
    assert len(steps) > 4
    assert steps == sorted(steps)  # it never began again
    with closing(sqlite3.connect(target)) as copy:
        (seen,) = copy.execute("SELECT count(*) FROM garbage WHERE key LIKE 'probe/%'").fetchone()
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert seen < len(written) - 4


def test_what_the_snapshot_names_stays_until_it_is_copied(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job is deleted and the leader tidies up in mid-backup: the backup is whole all the same."""
    service = backups.service
    (job_id,) = (one["id"] for one in service.person.get("/v1/jobs?state=finished").json()["items"])
    snapshot = creating._snapshot

    def then_delete(*given: object) -> object:
        moment = snapshot(*given)  # type: ignore[arg-type]
        assert service.person.delete(f"/v1/jobs/{job_id}", params={"cascade": True}).is_success
        sweep(service)
        assert refs_below(service, f"jobs/{job_id}")
        with pytest.raises(ConflictError, match="a backup is being made"):
            collect(service.database, store_of(service), dry_run=False, after=None)
        return moment

    monkeypatch.setattr(creating, "_snapshot", then_delete)
    backup = backups.create()
    assert verify(backup, quiet).lost == {}
    assert backups.restore(backup).counts["jobs"] == 2
    sweep(service)
    assert refs_below(service, f"jobs/{job_id}") == ()
    with service.database.read() as session:
        assert session.scalars(select(Garbage.key)).all() == []


def test_a_hold_ends_with_its_holder(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.storage.holds.HOLD_S", 0.2)
    with held(database):  # not renewed before 20 s: as if it were killed
        with database.read() as session:
            assert is_held(session)
        time.sleep(0.3)
        with database.read() as session:
            assert not is_held(session)


def test_a_hold_that_was_lost_in_the_meantime_is_no_backup(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if the command has ended before the next renewal."""
    monkeypatch.setattr("server.storage.holds.HOLD_S", 0.2)
    with held(database) as hold:
        hold.check()
        time.sleep(0.3)
        with pytest.raises(HoldLostError):
            hold.check()


def test_a_hold_that_is_renewed_while_somebody_looks_counts(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with held(database) as hold:
        now = holds.database_now

        def then_renewed(session: Session) -> datetime:
            monkeypatch.setattr(holds, "database_now", now)
            moment = now(session)
            threading.Thread(target=hold._renew).start()
            time.sleep(0.2)
            return moment

        monkeypatch.setattr(holds, "database_now", then_renewed)
        with database.read() as session:
            assert is_held(session)


def test_nothing_is_saved_of_a_store_that_is_not_mounted(backups: Backups) -> None:
    store = store_of(backups.service).folder
    assert store is not None
    store.rename(store.with_name("elsewhere"))
    store.mkdir()
    with pytest.raises(ArtefactStoreUnavailableError):
        backups.create("backup")
    assert not (backups.folder / "backup").exists()


def test_what_a_backup_lacks_is_said_whenever_it_is_read(
    backups: Backups, capsys: pytest.CaptureFixture[str]
) -> None:
    lost = refs_below(backups.service, "datasets")[0]
    store_of(backups.service).delete(lost)
    backup, home = str(backups.create()), str(backups.home().folder)
    for command in (["verify", backup], ["restore", backup, "--home", home]):
        assert program.main(command) == 1
        assert f"not saved: {lost.key}" in capsys.readouterr().err


def test_a_disk_of_its_own_is_no_folder_to_be_made(backups: Backups, monkeypatch: pytest.MonkeyPatch) -> None:
    backup = backups.create()
    monkeypatch.setattr(Path, "is_mount", lambda path: path == backups.home("disk").folder)
    with pytest.raises(BackupError, match="is a disk of its own"):
        backups.restore(backup, "disk")


def test_an_object_that_was_lost_before_is_named(backups: Backups) -> None:
    service = backups.service
    gone, damaged = refs_below(service, "datasets")[0], refs_below(service, "jobs")[0]
    store = store_of(service)
    store.delete(gone)
    path = store.local_path(damaged)
    assert path is not None
    path.write_bytes(b"x" * damaged.size)
    backup = backups.create()
    assert set(verify(backup, quiet).lost) == {gone.key, damaged.key}
    assert backups.restore(backup).manifest.lost.keys() == {gone.key, damaged.key}


def test_unchanged_objects_are_linked_to_an_earlier_backup(
    backups: Backups, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = backups.create("first")
    objects = (path for path in (first / "artefacts" / "jobs").rglob("*-*gz") if path.is_file())
    (spoilt, *others) = sorted(objects)  # without the folder of a job whose id ends in "gz"
    spoilt.write_bytes(b"?" * spoilt.stat().st_size)
    needed: list[int] = []
    monkeypatch.setattr(creating, "check_room", lambda _folder, size: needed.append(size))
    second = backups.create("second", earlier=first)
    assert needed == [0]  # what is linked takes no room
    for path in others:
        assert (second / path.relative_to(first)).stat().st_ino == path.stat().st_ino
    copied = second / spoilt.relative_to(first)
    assert copied.stat().st_ino != spoilt.stat().st_ino
    verify(second, quiet)
    with pytest.raises(BackupDamagedError, match="sha256"):
        verify(first, quiet)
    shutil.rmtree(first)
    backups.restore(second)


def test_what_a_killed_backup_left_is_never_taken_for_one(backups: Backups) -> None:
    left = backups.folder / f".{ODD}.0badcafe.part"
    left.mkdir()
    (left / "server.db").write_bytes(b"half")
    with pytest.raises(BackupError, match="is not a backup"):
        verify(left, quiet)
    verify(backups.create(), quiet)
    assert not left.exists()


def test_a_disk_that_fills_up_in_mid_backup(backups: Backups, monkeypatch: pytest.MonkeyPatch) -> None:
    with small_disk(backups.folder / "disk", 1 << 20) as disk:
        with pytest.raises(BackupError, match="GiB are free"):
            create(backups.service.settings, Wanted(disk / "backup"), quiet)
        monkeypatch.setattr(
            "server.backup.building.SCARCE_BYTES", -(2**40)
        )  # as if others filled it meanwhile
        with closing(sqlite3.connect(backups.folder / "server.db")) as side, side:
            side.execute("CREATE TABLE filling (text TEXT)")
            side.execute("INSERT INTO filling VALUES (?)", ("x" * (2 << 20),))
        with pytest.raises(BackupError, match="full"):
            create(backups.service.settings, Wanted(disk / "backup"), quiet)
        assert os.listdir(disk) == []
        with backups.service.database.read() as session:
            assert not is_held(session)
