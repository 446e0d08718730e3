"""A store and what is done with it: put, read, list, delete.

An object's key is `{owner}/{sha256}-{name}`. The owner is a path such as `jobs/<id>/model` and the unit of
deletion: whatever is deleted separately (each checkpoint of a job, say) needs its own owner. Within one
owner, equal content under an equal name is one object, so putting it twice has no further effect. Objects
appear whole or not at all and never change; readers verify the hash.

A folder (file:///...) is written directly, without a second copy of large files. Any other fsspec URL goes
through its file system, whose writes must be atomic, as in object stores.
"""

import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

import fsspec
from fsspec.implementations.local import LocalFileSystem

from powermean.artefacts.errors import (
    ArtefactCorruptError,
    ArtefactMissingError,
    ArtefactStoreUnavailableError,
    as_artefact_errors,
)
from powermean.artefacts.folder import MARKER, TEMPORARY_FOLDER, StoreFolder
from powermean.artefacts.keys import OBJECT, PART, check_key, check_owner, clean_name, object_ref
from powermean.contracts.artefacts import ArtefactRef

CHUNK = 1 << 20

_FOLDER = "file://"  # what follows is the path as it is


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
        try:
            found, root = _file_system(url)
        except (ValueError, ImportError, OSError) as error:
            raise ArtefactStoreUnavailableError(f"cannot use the artefact store {url}: {error}") from error
        self._fs = cast(_FileSystem, found)
        self._prefix = root.rstrip("/")
        is_folder = isinstance(found, LocalFileSystem)
        self._folder = StoreFolder(Path(self._prefix), existing=existing) if is_folder else None

    def put_file(
        self, owner: str, path: Path, name: str | None = None, *, consume: bool = False
    ) -> ArtefactRef:
        """Store a local file, under `name` or its own.

        With `consume` the caller gives up the file: a store on the same file system takes it over without a
        second write (used for checkpoints); otherwise it is removed once stored.
        """
        if not path.is_file():  # the caller's mistake, not the store's
            raise ArtefactMissingError(f"no file {path} to store")
        return self._put_file(check_owner(owner), path, clean_name(name or path.name), consume)

    def put_bytes(self, owner: str, name: str, data: bytes) -> ArtefactRef:
        """Store a few bytes."""
        ref = object_ref(check_owner(owner), hashlib.sha256(data).hexdigest(), clean_name(name), len(data))
        if self.exists(ref):
            return ref
        with as_artefact_errors(ref.key):
            if self._folder is None:
                self._fs.pipe_file(self._remote(ref.key), data)
                return ref
            with self._folder.temporary_file() as temporary:
                with temporary.open("wb") as file:
                    file.write(data)
                    _sync(file)
                self._folder.adopt(temporary, ref.key)
        return ref

    def get_bytes(self, ref: ArtefactRef) -> bytes:
        """The whole object, verified."""
        with as_artefact_errors(ref.key):
            data = self._fs.cat_file(self._remote(ref.key))
        _check(ref, len(data), hashlib.sha256(data).hexdigest())
        return data

    def open(self, ref: ArtefactRef) -> BinaryIO:
        """The object as a seekable binary file, not verified."""
        with as_artefact_errors(ref.key):
            return self._fs.open(self._remote(ref.key), "rb")

    def read_range(self, ref: ArtefactRef, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object, or up to its end if that comes first; not verified."""
        if start < 0 or end < start:
            raise ValueError("a range needs 0 <= start <= end")
        with self.open(ref) as file, as_artefact_errors(ref.key):
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
            with self.open(ref) as source, as_artefact_errors(ref.key), temporary.open("xb") as copy:
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
        with as_artefact_errors(ref.key):
            path = self._folder.path_of(ref.key)
            if not path.is_file():
                raise ArtefactMissingError(f"no artefact {ref.key}")
        return path

    def exists(self, ref: ArtefactRef) -> bool:
        """Whether the object exists with its full size."""
        with as_artefact_errors(ref.key):
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
        with as_artefact_errors(owner):
            try:
                found = self._fs.find(self._remote(owner), detail=True)
            except FileNotFoundError:
                return ()
        stored = []
        for path, info in found.items():
            key = path.removeprefix(self._prefix).lstrip("/")
            if match := OBJECT.fullmatch(key.rsplit("/", 1)[-1]):
                ref = ArtefactRef(key=key, sha256=match["sha256"], size=cast(int, info["size"]))
                stored.append(StoredObject(ref, _modified(info)))
        return tuple(sorted(stored, key=lambda one: one.ref.key))

    def children(self, owner: str) -> tuple[str, ...]:
        """The names directly below an owner: the jobs below `jobs`."""
        with as_artefact_errors(owner):
            try:
                found = self._fs.ls(self._remote(check_owner(owner)), detail=False)
            except FileNotFoundError:
                return ()
        names = (path.rstrip("/").rsplit("/", 1)[-1] for path in found)
        return tuple(sorted(name for name in names if PART.fullmatch(name)))

    def delete(self, ref: ArtefactRef) -> None:
        """Remove one object; no error if it is already gone."""
        with as_artefact_errors(ref.key):
            try:
                self._fs.rm_file(self._remote(ref.key))
            except FileNotFoundError:
                return

    def delete_prefix(self, owner: str) -> None:
        """Remove everything under an owner: `a/b` includes `a/b/c`, but not `a/bc`."""
        check_owner(owner)
        with as_artefact_errors(owner):
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
        return None if self._folder is None else self._folder.path

    def sweep(self) -> None:
        """Remove half-written files that dead writers left more than a day ago."""
        if self._folder is not None:
            with as_artefact_errors(TEMPORARY_FOLDER):
                self._folder.sweep()

    def make(self) -> None:
        """Make a folder a store, unless it is one. For servers, at their start."""
        if self._folder is not None:
            with as_artefact_errors(MARKER):
                self._folder.make()

    @property
    def empty_folder(self) -> Path | None:
        """The folder, if it is empty or missing: a new store, or a disk that is not mounted."""
        if self._folder is None:
            return None
        with as_artefact_errors(str(self._folder.path)):
            return self._folder.path if self._folder.is_empty else None

    def _put_file(self, owner: str, path: Path, name: str, consume: bool) -> ArtefactRef:
        with as_artefact_errors(f"{owner}/{name}"):
            if self._folder is not None and not (consume and self._folder.is_on_disk_of(path)):
                ref = self._copy_in(self._folder, owner, path, name)
            else:
                with path.open("rb") as file:
                    size, sha256 = _hash(file)
                    os.fsync(file.fileno())
                ref = object_ref(owner, sha256, name, size)
                if not self.exists(ref):
                    if self._folder is not None:
                        self._folder.adopt(path, ref.key)
                    else:
                        self._fs.put_file(str(path), self._remote(ref.key))
            if consume:
                path.unlink(missing_ok=True)
        return ref

    def _copy_in(self, folder: StoreFolder, owner: str, path: Path, name: str) -> ArtefactRef:
        """Copy and hash in one pass over the file."""
        with folder.temporary_file() as temporary:
            with path.open("rb") as source, temporary.open("xb") as copy:
                size, sha256 = _copy(source, copy)
                _sync(copy)
            ref = object_ref(owner, sha256, name, size)
            if not self.exists(ref):
                folder.adopt(temporary, ref.key)
        return ref

    def _remote(self, key: str) -> str:
        if self._folder is not None:
            return str(self._folder.path_of(key))
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
            with as_artefact_errors(ref.key):
                piece = file.read(min(CHUNK, left))
            if not piece:
                raise ArtefactCorruptError(f"artefact {ref.key} ends {left} bytes early")
            left -= len(piece)
            yield piece
