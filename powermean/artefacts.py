"""The artefact store: checkpoints, models, datasets, logs and texts, by content and owner.

An object's key is `{owner}/{sha256}-{name}`. The owner is a path such as `jobs/<id>/model` and the unit of
deletion: whatever is deleted separately (each checkpoint of a job, say) needs its own owner. Within one
owner, equal content under an equal name is one object, so putting it twice has no further effect. Objects
appear whole or not at all and never change; readers verify the hash.

A folder (file:///...) is written directly, without a second copy of large files. Any other fsspec URL goes
through its file system, whose writes must be atomic, as in object stores.

A folder that is a store holds the file MARKER. Where it is missing, the disk is not mounted or the folder was
replaced: what is written there would be lost, and what is missing there is not gone.
"""

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from powermean.contracts.artefacts import ArtefactRef
from powermean.disk import is_full
from powermean.errors import PowermeanError

CHUNK = 1 << 20
MARKER = ".powermean-store"
TEMPORARY_FOLDER = ".incoming"
TEMPORARY_LIFETIME_S = 86_400.0
NAME_LENGTH = 100

_FOLDER = "file://"  # what follows is the path as it is
_PART = re.compile(r"[A-Za-z0-9@+=_-][A-Za-z0-9.@+=_-]*")
_OBJECT = re.compile(r"(?P<sha256>[0-9a-f]{64})-(?P<name>.+)")


class ArtefactError(PowermeanError):
    """Something is wrong with the store or in it."""

    code = "artefact_error"


class ArtefactKeyInvalidError(ArtefactError):
    """An owner or key that does not name a place inside the store."""

    code = "artefact_key_invalid"


class ArtefactMissingError(ArtefactError):
    """No such object: deleted by retention, or never put."""

    code = "artefact_missing"


class ArtefactCorruptError(ArtefactError):
    """The object's bytes are not the ones that were stored."""

    code = "artefact_corrupt"
    remedy = "restore the object from a backup, or resume from another checkpoint"


class ArtefactStoreFullError(ArtefactError):
    """No space left."""

    code = "artefact_store_full"
    retryable = True
    remedy = "free space in the artefact store, or keep fewer checkpoints"


class ArtefactStoreUnavailableError(ArtefactError):
    """The store can't be reached or refuses access."""

    code = "artefact_store_unavailable"
    retryable = True
    remedy = "check POWERMEAN_ARTEFACTS_URL, its permissions and the connection"


@dataclass(frozen=True)
class StoredObject:
    """An object, and when it was stored."""

    ref: ArtefactRef
    modified: datetime


class _FileSystem(Protocol):
    """The part of fsspec's file systems that is used here."""

    def open(self, path: str, mode: str = "rb") -> BinaryIO: ...
    def info(self, path: str) -> dict[str, object]: ...
    def put_file(self, lpath: str, rpath: str) -> None: ...
    def pipe_file(self, path: str, value: bytes) -> None: ...
    def cat_file(self, path: str, start: int | None = None, end: int | None = None) -> bytes: ...
    def find(self, path: str, detail: bool = False) -> dict[str, dict[str, object]]: ...
    def ls(self, path: str, detail: bool = False) -> list[str]: ...
    def makedirs(self, path: str, exist_ok: bool = False) -> None: ...
    def rm_file(self, path: str) -> None: ...
    def rm(self, path: str, recursive: bool = False) -> None: ...
    def exists(self, path: str) -> bool: ...


class ArtefactStore:
    """One store, by its URL. Calls may come from any thread; they raise ArtefactError and nothing else."""

    def __init__(self, url: str, *, existing: bool = False) -> None:
        """`existing`: for nodes, which never make a store; otherwise the first write makes a folder one."""
        self.url = url
        self._existing = existing
        try:
            found, root = _file_system(url)
        except (ValueError, ImportError, OSError) as error:
            raise ArtefactStoreUnavailableError(f"cannot use the artefact store {url}: {error}") from error
        self._fs = cast(_FileSystem, found)
        self._prefix = root.rstrip("/")
        self._folder = Path(self._prefix).resolve() if isinstance(found, LocalFileSystem) else None
        self._seen = False  # the marker, by this process
        with suppress(OSError):  # a disk that does not answer: the first call says so
            self._seen = self._folder is not None and (self._folder / MARKER).exists()

    def put_file(
        self, owner: str, path: Path, name: str | None = None, *, consume: bool = False
    ) -> ArtefactRef:
        """Store a local file, under `name` or its own.

        With `consume` the caller gives up the file: a store on the same file system takes it over without a
        second write (used for checkpoints); otherwise it is removed once stored.
        """
        if not path.is_file():  # the caller's mistake, not the store's
            raise ArtefactMissingError(f"no file {path} to store")
        return self._put_file(check_owner(owner), path, _clean_name(name or path.name), consume)

    def put_bytes(self, owner: str, name: str, data: bytes) -> ArtefactRef:
        """Store a few bytes."""
        ref = _ref(check_owner(owner), hashlib.sha256(data).hexdigest(), _clean_name(name), len(data))
        if self.exists(ref):
            return ref
        with _translated(ref.key):
            if self._folder is None:
                self._fs.pipe_file(self._remote(ref.key), data)
                return ref
            temporary = self._temporary()
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    _sync(file)
                self._adopt(temporary, ref.key)
            finally:
                temporary.unlink(missing_ok=True)
        return ref

    def get_bytes(self, ref: ArtefactRef) -> bytes:
        """The whole object, verified."""
        with _translated(ref.key):
            data = self._fs.cat_file(self._remote(ref.key))
        _check(ref, len(data), hashlib.sha256(data).hexdigest())
        return data

    def open(self, ref: ArtefactRef) -> BinaryIO:
        """The object as a seekable binary file, not verified."""
        with _translated(ref.key):
            return self._fs.open(self._remote(ref.key), "rb")

    def read_range(self, ref: ArtefactRef, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object, or up to its end if that comes first; not verified."""
        if start < 0 or end < start:
            raise ValueError("a range needs 0 <= start <= end")
        with self.open(ref) as file, _translated(ref.key):
            file.seek(start)
            return file.read(end - start)

    def chunks(self, ref: ArtefactRef, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Bytes [start, end) in pieces of at most 1 MiB, not verified.

        A missing object raises at once, not at the first piece. One that ends early raises
        ArtefactCorruptError.
        """
        file = self.open(ref)
        return _pieces(file, ref, start, ref.size if end is None else min(end, ref.size))

    def local_copy(self, ref: ArtefactRef, target: Path) -> Path:
        """Copy the object to the file `target`: verified while copying, and whole or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
        try:
            with self.open(ref) as source, _translated(ref.key), temporary.open("xb") as copy:
                size, sha256 = _copy(source, copy)
            _check(ref, size, sha256)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)
        return target

    def local_path(self, ref: ArtefactRef) -> Path | None:
        """Path of the object if the store is a folder on this host; read-only and not verified."""
        if self._folder is None:
            return None
        with _translated(ref.key):
            path = self._path(ref.key)
            if not path.is_file():
                raise ArtefactMissingError(f"no artefact {ref.key}")
        return path

    def exists(self, ref: ArtefactRef) -> bool:
        """Whether the object exists with its full size."""
        with _translated(ref.key):
            try:
                return self._fs.info(self._remote(ref.key))["size"] == ref.size
            except FileNotFoundError:
                return False

    def list(self, owner: str) -> tuple[ArtefactRef, ...]:
        """Everything under an owner, by key."""
        return tuple(found.ref for found in self.list_stored(owner))

    def list_stored(self, owner: str) -> tuple[StoredObject, ...]:
        """The same, with the times at which they were stored."""
        check_owner(owner)
        with _translated(owner):
            try:
                found = self._fs.find(self._remote(owner), detail=True)
            except FileNotFoundError:
                return ()
        stored = []
        for path, info in found.items():
            key = path.removeprefix(self._prefix).lstrip("/")
            if match := _OBJECT.fullmatch(key.rsplit("/", 1)[-1]):
                ref = ArtefactRef(key=key, sha256=match["sha256"], size=cast(int, info["size"]))
                stored.append(StoredObject(ref, _modified(info)))
        return tuple(sorted(stored, key=lambda one: one.ref.key))

    def children(self, owner: str) -> tuple[str, ...]:
        """The names directly below an owner: the jobs below `jobs`."""
        with _translated(owner):
            try:
                found = self._fs.ls(self._remote(check_owner(owner)), detail=False)
            except FileNotFoundError:
                return ()
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in found)
        return tuple(sorted(name for name in names if _PART.fullmatch(name)))

    def delete(self, ref: ArtefactRef) -> None:
        """Remove one object; no error if it is already gone."""
        with _translated(ref.key):
            try:
                self._fs.rm_file(self._remote(ref.key))
            except FileNotFoundError:
                return

    def delete_prefix(self, owner: str) -> None:
        """Remove everything under an owner: `a/b` includes `a/b/c`, but not `a/bc`."""
        check_owner(owner)
        with _translated(owner):
            try:
                self._fs.rm(self._remote(owner), recursive=True)
            except FileNotFoundError:
                return

    def probe(self) -> None:
        """Raises ArtefactError unless an object can be written, read and removed."""
        ref = self.put_bytes(f"probe/{secrets.token_hex(8)}", "probe", b"probe")
        self.get_bytes(ref)
        self.delete_prefix(ref.key.rsplit("/", 1)[0])

    @property
    def folder(self) -> Path | None:
        """The store's folder on this host; None for any other kind of store."""
        return self._folder

    def sweep(self) -> None:
        """Remove half-written files that dead writers left more than a day ago."""
        if self._folder is None:
            return
        oldest = time.time() - TEMPORARY_LIFETIME_S
        with _translated(TEMPORARY_FOLDER):
            for path in (self._folder / TEMPORARY_FOLDER).glob("*"):
                if path.stat().st_mtime < oldest:
                    path.unlink(missing_ok=True)

    def _put_file(self, owner: str, path: Path, name: str, consume: bool) -> ArtefactRef:
        with _translated(f"{owner}/{name}"):
            if self._folder is not None and not (consume and self._same_file_system(path)):
                ref = self._copy_in(owner, path, name)
            else:
                with path.open("rb") as file:
                    size, sha256 = _hash(file)
                    os.fsync(file.fileno())
                ref = _ref(owner, sha256, name, size)
                if not self.exists(ref):
                    if self._folder is not None:
                        self._adopt(path, ref.key)
                    else:
                        self._fs.put_file(str(path), self._remote(ref.key))
            if consume:
                path.unlink(missing_ok=True)
        return ref

    def _copy_in(self, owner: str, path: Path, name: str) -> ArtefactRef:
        """Copy and hash in one pass over the file."""
        temporary = self._temporary()
        try:
            with path.open("rb") as source, temporary.open("xb") as copy:
                size, sha256 = _copy(source, copy)
                _sync(copy)
            ref = _ref(owner, sha256, name, size)
            if not self.exists(ref):
                self._adopt(temporary, ref.key)
        finally:
            temporary.unlink(missing_ok=True)
        return ref

    def make(self) -> None:
        """Make a folder a store, unless it is one. For servers, at their start."""
        if self._folder is not None:
            with _translated(MARKER):
                self._folder.mkdir(parents=True, exist_ok=True)
                if not (self._folder / MARKER).exists():  # it may be somebody else's
                    (self._folder / MARKER).touch()
            self._seen = True

    @property
    def empty_folder(self) -> Path | None:
        """The folder, if it is empty or missing: a new store, or a disk that is not mounted."""
        if self._folder is None:
            return None
        with _translated(str(self._folder)):
            return None if self._folder.is_dir() and any(self._folder.iterdir()) else self._folder

    def _check_mounted(self, *, to_write: bool = False) -> Path:
        """The folder. Raises ArtefactStoreUnavailableError where it is not the store that it was."""
        assert self._folder is not None
        if (self._folder / MARKER).exists():
            self._seen = True
        elif self._seen or self._existing:
            raise ArtefactStoreUnavailableError(
                f"the folder {self._folder} is not the artefact store: it has no {MARKER}",
                remedy="Is its disk mounted? Does POWERMEAN_ARTEFACTS_URL name the server's store?",
            )
        elif to_write:
            self.make()
        return self._folder

    def _adopt(self, file: Path, key: str) -> None:
        """Move a finished file on the same file system into place, durably."""
        target = self._path(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        descriptor = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _same_file_system(self, path: Path) -> bool:
        folder = self._check_mounted(to_write=True)
        return path.stat().st_dev == folder.stat().st_dev and not path.is_symlink()

    def _temporary(self) -> Path:
        folder = self._check_mounted(to_write=True) / TEMPORARY_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        return folder / secrets.token_hex(16)

    def _path(self, key: str) -> Path:
        folder = self._check_mounted()
        path = folder / check_key(key)
        if not path.resolve().is_relative_to(folder):
            raise ArtefactKeyInvalidError(f"artefact {key} lies outside the store")
        return path

    def _remote(self, key: str) -> str:
        if self._folder is not None:
            return str(self._path(key))
        return f"{self._prefix}/{check_key(key)}"


def _file_system(url: str) -> tuple[object, str]:
    """The file system of a URL and the root in it. fsspec takes `::` for a chain, even in a folder's name."""
    if url.startswith(_FOLDER):
        return LocalFileSystem(), Path(url.removeprefix(_FOLDER)).absolute().as_posix()
    found, root = fsspec.core.url_to_fs(url)
    return found, str(root)


def _modified(info: Mapping[str, object]) -> datetime:
    """When an object was stored, by whichever name its file system has for that; unknown: just now."""
    for name in ("mtime", "LastModified", "last_modified", "updated", "created"):
        match info.get(name):
            case int() | float() as seconds:
                return datetime.fromtimestamp(seconds, UTC)
            case datetime() as moment:
                return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
            case str() as text:
                with suppress(ValueError):
                    return datetime.fromisoformat(text).astimezone(UTC)
    return datetime.now(UTC)


def check_key(key: str) -> str:
    """The key, if it names a place inside the store; otherwise raises ArtefactKeyInvalidError."""
    if len(key) > 500 or not all(_PART.fullmatch(part) for part in key.split("/")):
        raise ArtefactKeyInvalidError(f"not an artefact key: {key[:100]!r}")
    return key


def check_owner(owner: str) -> str:
    """The owner, if it leaves room for hash and name; otherwise raises ArtefactKeyInvalidError."""
    check_key(owner)
    if len(owner) > 300:
        raise ArtefactKeyInvalidError(f"owner longer than 300 characters: {owner[:100]!r}")
    return owner


def _clean_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-NAME_LENGTH:] or "data"


def _ref(owner: str, sha256: str, name: str, size: int) -> ArtefactRef:
    return ArtefactRef(key=f"{owner}/{sha256}-{name}", sha256=sha256, size=size)


def _check(ref: ArtefactRef, size: int, sha256: str) -> None:
    if size != ref.size or sha256 != ref.sha256:
        raise ArtefactCorruptError(f"artefact {ref.key} is damaged: {size} bytes with sha256 {sha256}")


def _hash(file: IO[bytes]) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while piece := file.read(CHUNK):
        digest.update(piece)
        size += len(piece)
    return size, digest.hexdigest()


def _copy(source: IO[bytes], target: IO[bytes]) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    while piece := source.read(CHUNK):
        digest.update(piece)
        target.write(piece)
        size += len(piece)
    return size, digest.hexdigest()


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())


def _pieces(file: BinaryIO, ref: ArtefactRef, start: int, end: int) -> Iterator[bytes]:
    with file:
        file.seek(start)
        left = end - start
        while left > 0:
            with _translated(ref.key):
                piece = file.read(min(CHUNK, left))
            if not piece:
                raise ArtefactCorruptError(f"artefact {ref.key} ends {left} bytes early")
            left -= len(piece)
            yield piece


@contextmanager
def _translated(key: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ArtefactMissingError(f"no artefact {key}") from error
    except OSError as error:
        if is_full(error):
            raise ArtefactStoreFullError(f"no space left to store {key}") from error
        raise ArtefactStoreUnavailableError(f"the artefact store failed at {key}: {error}") from error
