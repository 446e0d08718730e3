"""Backups of a service in this process: what they hold, and what is refused."""

import fcntl
import os
import shutil
import sqlite3
import threading
import time
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.command import downgrade
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactStore, ArtefactStoreUnavailableError
from powermean.home import Home
from powermean.tokens import ensure_key_pair
from server.audit.archive import archive
from server.audit.journal import HEAD_FILE, read_head
from server.audit.reading import verify as verify_audit
from server.backup import __main__ as program
from server.backup import create as creating
from server.backup.create import Wanted, create
from server.backup.manifest import (
    DATABASE,
    MANIFEST,
    BackupDamagedError,
    BackupError,
    File,
    Manifest,
    described,
)
from server.backup.restore import Restored, restore, verify
from server.db.migrate import NewerDatabaseError, alembic_config
from server.db.models import Garbage, ServerProcess
from server.db.session import Database
from server.errors import ConflictError
from server.storage import holds
from server.storage.collection import collect
from server.storage.holds import HoldLostError, held, is_held
from server.storage.references import every, owned
from tests.support.service_driver import ServiceDriver
from tests.support.small_disk import small_disk
from tests.support.stored_things import commit, counts, full_job, refs_below, store_of, sweep


@pytest.fixture
def kind() -> str:
    """`powermean backup` is for SQLite; docs/backup.md says how Postgres is backed up."""
    return "sqlite"


ODD = "what?[1] 50%::#"  # each of these means something in another program's language


def quiet(_what: str, _done: int, _total: int) -> None:
    pass


@dataclass
class Backups:
    """A service with something in every table, its backups, and where they are restored."""

    service: ServiceDriver
    folder: Path

    def create(self, name: str = ODD, **more: object) -> Path:
        target = self.folder / name
        create(self.service.settings, Wanted(target, **more), quiet)  # type: ignore[arg-type]
        return target

    def restore(self, backup: Path, name: str = f"{ODD} restored", *, replace: bool = False) -> Restored:
        return restore(backup, self.home(name), replace=replace, progress=quiet)

    def home(self, name: str = f"{ODD} restored") -> Home:
        return Home(self.folder / name)


@pytest.fixture
def backups(service: ServiceDriver, tmp_path: Path) -> Backups:
    full_job(service)
    running = service.running(max_restarts=1)
    commit(service, running, 3)
    upload = {"file": ("sums.jsonl", b'{"problem": "1+1", "answer": "2"}\n')}
    answer = service.person.post("/v1/datasets", files=upload, params={"name": "sums"})
    assert answer.status_code == 201, answer.text
    service.person.get("/v1/audit")  # seals what was done so far
    (service.settings.secrets_dir / "admin.key").write_text("pm_" + "a" * 43)
    return Backups(service, tmp_path)


@pytest.mark.slow
def test_what_is_restored_is_what_was_saved(backups: Backups) -> None:
    service = backups.service
    with service.database.write() as session:  # as it is while a server runs
        now = datetime.now(UTC)
        row = {"name": "here", "version": "0", "key_sha256": "0" * 64, "started_at": now, "seen_at": now}
        session.add(ServerProcess(id="lost", **row))
    keys = ensure_key_pair(service.settings.secrets_dir)
    assert archive(service.database, keys, None, backups.folder, datetime.now(UTC)) is not None
    service.app.state.journal.seal()
    before = counts(service.database)
    backup = backups.create()
    done = backups.restore(backup)
    home = backups.home()
    database = Database(creating.address(home.database))
    after = counts(database)
    assert after.pop("leaders") == after.pop("servers") == 0  # those of the lost service
    assert after == {name: count for name, count in before.items() if name in after}
    assert done.counts["jobs"] == 2
    store = ArtefactStore(f"file://{home.artefacts}")
    with database.read() as session:
        objects = list(every(session))
    assert len(objects) > 8
    for ref in objects:
        store.get_bytes(ref)  # verifies
    head = read_head(home.secrets / HEAD_FILE)
    assert head is not None
    signed = ensure_key_pair(home.secrets).public_pem  # a new key, which signed what was archived anew
    assert signed != keys.public_pem
    assert verify_audit(database, head, public_pem=signed).broken is None
    assert "those before are archived" in done.audit
    database.close()
    with service.database.write() as session:  # forged: no archive was made up to there
        session.execute(text("UPDATE audit_head SET cut_seq = seq, cut_hash = hash"))
        session.execute(text("DELETE FROM audit_entries"))
    again = backups.restore(backups.create("forged"), replace=True)
    database = Database(creating.address(home.database))
    broken = verify_audit(database, None, public_pem=ensure_key_pair(home.secrets).public_pem).broken
    assert broken is not None
    assert "without this server's signature" in broken.what
    assert "without this server's signature" in again.audit
    database.close()
    assert home.folder.stat().st_mode & 0o777 == home.secrets.stat().st_mode & 0o777 == 0o700


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


@pytest.mark.slow
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


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _to_link(path: Path) -> None:
    outside = next(one for one in path.parents if one.name == "spoilt") / "outside"
    shutil.move(path, outside)
    path.symlink_to(outside)


def _to_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.slow
def test_a_changed_byte_a_truncated_file_and_a_missing_one_are_found(backups: Backups) -> None:
    whole = backups.create("whole")
    (weights,) = (path.relative_to(whole) for path in whole.rglob("*-weights") if "1-3" in str(path))
    for name in (MANIFEST, "server.db", HEAD_FILE, "attempt_token.pub", str(weights)):
        for spoil in (_flip, _truncate, Path.unlink, _to_link, _to_pipe):
            if name == MANIFEST and spoil in (_to_link, _to_pipe):
                continue  # it is judged by what it says
            backup = backups.folder / "spoilt" / name.replace("/", "-") / spoil.__name__
            shutil.copytree(whole, backup)
            spoil(backup / name)
            with pytest.raises(BackupError):
                verify(backup, quiet)
            with pytest.raises(BackupError):
                backups.restore(backup)
    assert not backups.home().folder.exists()
    assert list(backups.folder.glob(".*.part")) == []


def test_paths_that_lead_out_of_the_folder_are_refused(backups: Backups) -> None:
    backup = backups.create()
    made = Manifest.read(backup)
    for path in (
        "../outside", "artefacts/../../outside", "/etc/cron.d/x", "secrets/../x", "artefacts//x",
        "models/x", "",
    ):  # fmt: skip
        forged = made.model_copy(update={"files": (*made.files, File(path=path, size=0, sha256="0" * 64))})
        (backup / MANIFEST).write_text(forged.sealed().model_dump_json())
        with pytest.raises(BackupDamagedError, match="no place in a backup"):
            backups.restore(backup)


def test_backups_of_other_versions(backups: Backups) -> None:
    backup = backups.create()
    made = Manifest.read(backup)
    for changes, error, said in (
        ({"revision": "0999"}, NewerDatabaseError, "newer version.*0999.*upgrade powermean"),
        ({"revision": "0001"}, BackupDamagedError, "is at revision"),
        ({"format": 2, "version": "9.0"}, BackupError, "made by powermean 9.0"),
    ):
        (backup / MANIFEST).write_text(made.model_copy(update=changes).sealed().model_dump_json())
        with pytest.raises(error, match=said):
            backups.restore(backup)
    assert not backups.home().folder.exists()


@pytest.mark.slow
def test_a_backup_of_an_older_version_is_migrated(backups: Backups) -> None:
    backup = backups.create()
    made, older = Manifest.read(backup), Database(creating.address(backup / DATABASE))
    config = alembic_config()
    with older.rebuild() as connection:
        config.attributes["connection"] = connection
        downgrade(config, "0020")
    older.close()
    files = [described(backup, DATABASE), *(file for file in made.files if file.path != DATABASE)]
    forged = made.model_copy(update={"revision": "0020", "version": "0.0.9", "files": tuple(files)})
    (backup / MANIFEST).write_text(forged.sealed().model_dump_json())
    done = backups.restore(backup)
    assert (done.manifest.revision, done.revision) == ("0020", made.revision)
    assert done.counts["jobs"] == 2


def test_a_folder_that_is_in_use_or_not_empty(backups: Backups) -> None:
    backup, home = backups.create(), backups.home()
    with pytest.raises(BackupError, match="is there already"):
        backups.create()
    with pytest.raises(BackupError, match="is not a backup"):
        backups.restore(backups.folder / "nothing")
    home.folder.mkdir()
    (home.folder / "mine").write_text("kept")
    with pytest.raises(BackupError, match="is not empty"):
        backups.restore(backup)
    done = backups.restore(backup, replace=True)
    assert done.moved_to is not None
    assert (done.moved_to / "mine").read_text() == "kept"
    with home.lock.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write("process 7, http://127.0.0.1:8700")
        lock.flush()
        with pytest.raises(BackupError, match=r"a service runs in .*process 7"):
            backups.restore(backup, replace=True)


def test_of_two_restores_at_once_the_first_stays(backups: Backups) -> None:
    backup, others = backups.create(), []

    def tell(_what: str, _done: int, _total: int) -> None:
        if not others:  # in the middle of the first one, a second one begins and ends
            others.append(backups)
            backups.restore(backup)

    with pytest.raises(BackupError, match="is there already"):
        restore(backup, backups.home(), replace=False, progress=tell)
    assert list(backups.folder.glob(".*.part")) == []
    restored = Database(creating.address(backups.home().database))
    assert counts(restored)["jobs"] == 2
    restored.close()


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
