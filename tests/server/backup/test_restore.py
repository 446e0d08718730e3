"""What comes out of a backup, and what is refused."""

import fcntl
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pytest
from alembic.command import downgrade
from pydantic import create_model
from sqlalchemy import text

from powermean.artefacts import ArtefactStore
from powermean.tokens import ensure_key_pair
from server.audit.archive import archive
from server.audit.journal import HEAD_FILE, read_head
from server.audit.reading import verify as verify_audit
from server.backup import create as creating
from server.backup.manifest import (
    DATABASE,
    MANIFEST,
    BackupDamagedError,
    BackupError,
    File,
    Manifest,
    described,
)
from server.backup.restore import restore, verify
from server.db.migrate import NewerDatabaseError, alembic_config
from server.db.models import ServerProcess
from server.db.session import Database
from server.storage.references import every
from tests.support.backups import Backups, quiet
from tests.support.stored_things import counts

# `powermean backup` is for SQLite; docs/backup.md says how Postgres is backed up.
pytestmark = [pytest.mark.slow, pytest.mark.parametrize("kind", ["sqlite"], indirect=True)]


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
    (backup / MANIFEST).write_text(made.model_dump_json())
    with_another_field = create_model("ManifestOfALaterVersion", __base__=Manifest, later=(str, ""))
    assert with_another_field.read(backup).files == made.files


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
