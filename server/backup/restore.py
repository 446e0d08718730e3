"""Check a backup, and restore one into the folder of a service that `powermean up` then runs.

The folder is built beside its place, checked as a whole, and moved there at the end: a restore that fails or
is killed changes nothing.
"""

import fcntl
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from dataclasses import replace as replaced
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import delete, func, select

from powermean import private_files
from powermean.audit_chain import is_signed
from powermean.home import Home
from powermean.tokens import PUBLIC_KEY_NAME, ensure_key_pair
from server.audit import reading
from server.audit.archive import sign_again
from server.audit.journal import HEAD_FILE, read_head, record_command, signed_head
from server.backup.building import built, check_room
from server.backup.create import Progress, address
from server.backup.manifest import (
    ARTEFACTS,
    DATABASE,
    SECRETS,
    BackupDamagedError,
    BackupError,
    Manifest,
    pieces,
)
from server.db.migrate import check_revision, current_revision, migrate
from server.db.models import Base, Dataset, Job, Leader, Person, Project, ServerProcess
from server.db.session import Database
from server.storage.references import every

COUNTED: dict[str, type[Base]] = {"projects": Project, "people": Person, "jobs": Job, "datasets": Dataset}
VERB, REQUEST = "service.restore", "powermean restore"  # in the audit log


@dataclass(frozen=True)
class Restored:
    """What came out of it."""

    manifest: Manifest
    revision: str  # after the migrations
    counts: dict[str, int]
    audit: str  # whether the audit log is whole, for people
    moved_to: Path | None  # where the folder is that was there before


def verify(folder: Path, progress: Progress) -> Manifest:
    """Read every file of a backup. Raises BackupError, naming the first one that is not as it was saved."""
    manifest = Manifest.read(folder)
    done = 0
    for file in manifest.files:
        for piece in pieces(folder, file):
            done += len(piece)
            progress("check", done, manifest.size)
    return manifest


def restore(folder: Path, home: Home, *, replace: bool, progress: Progress) -> Restored:
    """Restore a backup as `home`; with `replace`, what is there is moved aside.

    Raises BackupError, NewerDatabaseError and other PowermeanErrors; then `home` is as it was.
    """
    manifest = Manifest.read(folder)
    check_revision(manifest.revision)
    now = datetime.now(UTC)
    occupied = home.folder.exists() and any(home.folder.iterdir())
    aside = home.folder.with_name(f"{home.folder.name}.before-{now:%Y%m%dT%H%M%S}") if occupied else None
    with _stopped(home):
        if occupied and not replace:
            raise BackupError(
                f"{home.folder} is not empty",
                remedy="Name another folder with --home, or move what is there aside with --replace.",
            )
        check_room(home.folder.parent, manifest.size)
        with built(home.folder, aside) as part:
            _copy_files(folder, manifest, part, progress)
            restored = _complete(folder, manifest, part, now)
    return replaced(restored, moved_to=aside)


@contextmanager
def _stopped(home: Home) -> Iterator[None]:
    """While it is open, no service starts in the folder. Raises BackupError if one runs there."""
    if not home.lock.exists():  # no service was ever there
        yield
        return
    lock = os.open(home.lock, os.O_RDWR)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        holder = home.lock.read_text().strip() or "another process"
        raise BackupError(
            f"a service runs in {home.folder} ({holder})",
            remedy="Stop it, or name another folder with --home.",
        ) from None
    finally:
        os.close(lock)


def _copy_files(folder: Path, manifest: Manifest, part: Path, progress: Progress) -> None:
    """Copy all but the head, which gets a new signature; each is checked on the way."""
    done = 0
    for file in manifest.files:
        target = part / file.path
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as copy:
            for piece in pieces(folder, file):
                copy.write(piece)
                done += len(piece)
                progress("restore", done, manifest.size)


def _complete(folder: Path, manifest: Manifest, part: Path, now: datetime) -> Restored:
    """Check what was copied as a whole, bring it to this version's revision, and begin a new signature."""
    _check_database(part / DATABASE, manifest)
    database = Database(address(part / DATABASE))
    try:
        migrate(database)
        _check_objects(database, manifest)
        said = _check_audit(database, part)
        before = _public_pem(part)
        (part / PUBLIC_KEY_NAME).unlink(missing_ok=True)
        keys = ensure_key_pair(_private(part / SECRETS))
        with database.write() as session:
            detail = {"made_at": manifest.made_at.isoformat(timespec="seconds"), "version": manifest.version}
            record_command(session, VERB, REQUEST, detail)
            for of_the_lost in (ServerProcess, Leader):  # or the new server would refuse to start beside them
                session.execute(delete(of_the_lost))
            if before is not None:
                sign_again(session, keys, before)
            head = signed_head(session, keys)
            counts = {
                name: session.scalar(select(func.count()).select_from(kind)) or 0
                for name, kind in COUNTED.items()
            }
        private_files.replace(part / SECRETS / HEAD_FILE, head.model_dump_json() + "\n")
        (part / HEAD_FILE).unlink(missing_ok=True)
        return Restored(manifest, current_revision(database) or "", counts, said, None)
    finally:
        database.close()


def _private(folder: Path) -> Path:
    folder.mkdir(exist_ok=True, mode=0o700)
    return folder


def _check_database(file: Path, manifest: Manifest) -> None:
    """Raises BackupDamagedError unless SQLite finds it whole, and at the revision that the manifest names."""
    try:
        with closing(sqlite3.connect(file)) as database:
            (found,) = database.execute("PRAGMA quick_check").fetchone()
            (revision,) = database.execute("SELECT version_num FROM alembic_version").fetchone()
    except (sqlite3.DatabaseError, TypeError) as error:
        raise BackupDamagedError(f"the backup's database is damaged: {error}") from error
    if found != "ok":
        raise BackupDamagedError(f"the backup's database is damaged: {found}")
    if revision != manifest.revision:
        raise BackupDamagedError(f"the backup's database is at revision {revision}, not {manifest.revision}")


def _check_objects(database: Database, manifest: Manifest) -> None:
    """Raises BackupDamagedError unless everything that the database names is in the backup."""
    there = {file.path.removeprefix(f"{ARTEFACTS}/"): file.sha256 for file in manifest.files}
    with database.read() as session:
        for ref in every(session):
            if there.get(ref.key) != ref.sha256 and ref.key not in manifest.lost:
                raise BackupDamagedError(f"the backup lacks {ref.key}, which its database names")


def _check_audit(database: Database, part: Path) -> str:
    """Whether the audit log is unbroken up to the backup's head."""
    public_pem = _public_pem(part)
    head = read_head(part / HEAD_FILE)
    if head is not None and not (public_pem is not None and is_signed(head, public_pem)):
        raise BackupDamagedError(f"{HEAD_FILE} is not signed by the key in {PUBLIC_KEY_NAME}")
    return reading.verify(database, head, public_pem=public_pem).said(head)


def _public_pem(part: Path) -> str | None:
    """The key that signed the log before the backup; None: the backup has none."""
    public = part / PUBLIC_KEY_NAME
    return public.read_text() if public.is_file() else None
