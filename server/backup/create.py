"""Make a backup of a service on SQLite while it runs.

A second process reads the database: in SQLite's write-ahead mode a reader sees one moment and holds up no
writer. What that moment names in the artefact store is held until it is copied (storage/holds.py), so neither
retention nor a new checkpoint takes it away. Objects never change, so they are copied after the database.
"""

import errno
import os
import shutil
import sqlite3
import urllib.parse
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import URL, make_url

from powermean import __version__
from powermean.artefacts import (
    ArtefactCorruptError,
    ArtefactMissingError,
    ArtefactStore,
    ArtefactStoreFullError,
)
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.audit import AuditHead
from powermean.home import Home
from powermean.tokens import PRIVATE_KEY_NAME, PUBLIC_KEY_NAME, ensure_key_pair
from server.audit.journal import HEAD_FILE, signed_head
from server.backup.building import built, check_room, disk_full
from server.backup.manifest import (
    ARTEFACTS,
    DATABASE,
    INSTANCE,
    KEYS,
    MANIFEST,
    SECRETS,
    SINGLE,
    BackupError,
    File,
    Manifest,
    described,
    pieces,
)
from server.db.migrate import current_revision, pending_revision
from server.db.session import Database
from server.settings import Settings
from server.storage.holds import held
from server.storage.references import every

PAGES = 512  # of the database, copied at a time
Progress = Callable[[str, int, int], None]  # what, and how many bytes of how many


@dataclass(frozen=True)
class Wanted:
    """What to make: with the keys or without; unchanged objects may be linked to an earlier backup's."""

    target: Path
    with_keys: bool = False
    earlier: Path | None = None
    home: Home | None = None  # of a service that `powermean up` runs


def create(settings: Settings, wanted: Wanted, progress: Progress) -> Manifest:
    """Make it. Raises BackupError, ArtefactError, HoldLostError and SQLAlchemyError; then nothing is left."""
    file = _database_file(settings)
    database = Database(settings.database_url)
    try:
        with built(wanted.target) as part, held(database) as hold:
            made_at = _snapshot(file, part / DATABASE, progress)
            contents = _read(part / DATABASE, settings)
            made = _Backup(settings, wanted, part, progress).complete(contents, made_at)
            hold.check()
            (part / MANIFEST).write_text(made.model_dump_json(indent=1))
    finally:
        database.close()
    return made


def _database_file(settings: Settings) -> Path:
    if not settings.on_sqlite:
        raise BackupError(
            "this service's database is Postgres, which has programs of its own for that",
            remedy="docs/backup.md says how.",
        )
    file = Path(make_url(settings.database_url).database or "")
    if not file.is_file():
        raise BackupError(f"there is no database at {file}")
    return file


def _snapshot(source: Path, target: Path, progress: Progress) -> datetime:
    """Copy the database as it is at one moment, which is returned."""
    # rw, because readers of a write-ahead log share memory with its writers.
    live_file = f"file:{urllib.parse.quote(str(source.absolute()))}?mode=rw"
    with (
        closing(sqlite3.connect(live_file, uri=True, isolation_level=None)) as live,
        closing(sqlite3.connect(target)) as copy,
    ):
        size = live.execute("PRAGMA page_size").fetchone()[0]

        def tell(_status: int, left: int, total: int) -> None:
            progress("database", (total - left) * size, total * size)

        live.execute("BEGIN")
        live.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on it sees this moment
        moment = datetime.now(UTC)
        try:
            live.backup(
                copy, pages=PAGES, progress=tell
            )  # within the transaction it never has to begin again
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target)) from error
            raise BackupError(f"the database {source} can't be copied: {error}") from error
    return moment


@dataclass(frozen=True)
class _Contents:
    """What a copy of the database says."""

    revision: str
    objects: dict[str, ArtefactRef]  # by key
    head: AuditHead | None  # signed, if the server has a key


def _read(file: Path, settings: Settings) -> _Contents:
    """Raises BackupError for a database that this version can't read."""
    copy = Database(address(file))
    try:
        revision = current_revision(copy)
        if revision is None or pending_revision(copy) is not None:
            raise BackupError(
                f"the database is at revision {revision}, an older version's",
                remedy="Make the backup with that version, or migrate first.",
            )
        signs = (settings.secrets_dir / PRIVATE_KEY_NAME).is_file()
        with copy.read() as session:
            head = signed_head(session, ensure_key_pair(settings.secrets_dir)) if signs else None
            return _Contents(revision, {ref.key: ref for ref in every(session)}, head)
    finally:
        copy.close()


class _Backup:
    """The rest of a backup whose database is there."""

    def __init__(self, settings: Settings, wanted: Wanted, part: Path, progress: Progress) -> None:
        self._settings = settings
        self._wanted = wanted
        self._part = part
        self._progress = progress
        self._earlier = _files_of(wanted.earlier)

    def complete(self, contents: _Contents, made_at: datetime) -> Manifest:
        to_copy = (
            ref for ref in contents.objects.values() if self._earlier.get(_file(ref).path) != _file(ref)
        )
        check_room(self._part, sum(ref.size for ref in to_copy))
        files, lost = self._copy_objects(contents.objects)
        if contents.head is not None:
            (self._part / HEAD_FILE).write_text(contents.head.model_dump_json() + "\n")
            _copy(self._settings.secrets_dir / PUBLIC_KEY_NAME, self._part / PUBLIC_KEY_NAME)
        self._copy_keys()
        paths = [path for path in SINGLE if (self._part / path).is_file()]
        made = Manifest(
            version=__version__,
            revision=contents.revision,
            made_at=made_at,
            files=(*(described(self._part, path) for path in paths), *files),
            lost=lost,
        )
        return made.sealed()

    def _copy_objects(self, objects: dict[str, ArtefactRef]) -> tuple[list[File], dict[str, str]]:
        store = ArtefactStore(self._settings.artefacts_url, existing=True)
        total, done = sum(ref.size for ref in objects.values()), 0
        files, lost = [], {}
        for key in sorted(objects):
            ref = objects[key]
            file = _file(ref)
            try:
                if not self._link(file):
                    store.local_copy(ref, self._part / file.path)
                files.append(file)
            except (ArtefactMissingError, ArtefactCorruptError) as error:
                lost[key] = str(error)
            except ArtefactStoreFullError as error:  # it is not the store that is full
                raise disk_full(self._wanted.target) from error
            done += ref.size
            self._progress("artefacts", done, total)
        return files, lost

    def _link(self, file: File) -> bool:
        """Whether the object is as it should be in the earlier backup, and could be linked from there."""
        if self._wanted.earlier is None or self._earlier.get(file.path) != file:
            return False
        target = self._part / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            for _ in pieces(self._wanted.earlier, file):
                pass
            os.link(self._wanted.earlier / file.path, target)
        except (BackupError, OSError):  # damaged there, or on another disk: copied
            return False
        return True

    def _copy_keys(self) -> None:
        if self._wanted.home is not None and (found := self._wanted.home.folder / INSTANCE).is_file():
            _copy(found, self._part / INSTANCE)
        if self._wanted.with_keys:
            for name in KEYS:
                if (found := self._settings.secrets_dir / name).is_file():
                    _copy(found, self._part / SECRETS / name)


def _file(ref: ArtefactRef) -> File:
    """What an object is in a backup."""
    return File(path=f"{ARTEFACTS}/{ref.key}", size=ref.size, sha256=ref.sha256)


def address(file: Path) -> str:
    """The URL of a SQLite file, whatever its name."""
    return str(URL.create("sqlite", database=str(file)))


def _files_of(earlier: Path | None) -> dict[str, File]:
    return {} if earlier is None else {file.path: file for file in Manifest.read(earlier).files}


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    shutil.copyfile(source, target)
    target.chmod(0o600)
