"""Fetches a publish's files from the artefact store or shared memory and verifies them."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from powermean.artefacts import ArtefactError, ArtefactStore, ArtefactStoreUnavailableError
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.rollout import PublishRequest, WeightFile
from rollout.engine import EngineError
from rollout.own_folder import OwnFolder

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (only our own files with our own names are read, by hash)

_SHARED_NAME = re.compile(r"powermean-[A-Za-z0-9][A-Za-z0-9.-]*\.safetensors")
_READERS = 2


@dataclass(frozen=True)
class WeightSource:
    """Where published files are found. `store` is None for an engine without an artefact store."""

    store: ArtefactStore | None
    shared_memory: Path = SHARED_MEMORY

    @contextmanager
    def verified(self, request: PublishRequest) -> Iterator[list[Path]]:
        """Local files of the publish, all verified, during the block.

        Raises EngineError: weights_unavailable, weights_corrupt or invalid.
        """
        with (
            OwnFolder() as scratch,
            ThreadPoolExecutor(_READERS) as readers,
        ):
            fetched = [
                readers.submit(
                    self._fetch, request.method, file, f"files.{number}.uri", Path(scratch, str(number))
                )
                for number, file in enumerate(request.files)
            ]
            yield [path.result() for path in fetched]

    def in_place(self, request: PublishRequest) -> Path:
        """The file in shared memory that the trainer's weights live in. It has no hash: it changes.

        Raises EngineError: weights_unavailable or invalid.
        """
        name, own = request.memory or "", f"powermean-{request.job_id}.{request.attempt}."
        if not name.startswith(own):
            raise _invalid("memory", f"{name!r} is not a file of this attempt's, {own}*")
        return self._shared(name, "memory")

    def _fetch(self, method: str, file: WeightFile, field: str, target: Path) -> Path:
        kind, _, name = file.uri.partition(":")
        if kind != method:
            raise _invalid(field, f"{file.uri!r} is not a {method}: address, as the method says")
        path = self._shared(name, field) if kind == "shm" else self._stored(name, file, target, field)
        _verify(path, file)
        return path

    def _shared(self, name: str, field: str) -> Path:
        """Only plain files of this user, because others can write to the same folder."""
        if not _SHARED_NAME.fullmatch(name):
            raise _invalid(field, f"{name!r} is not a file name like powermean-*.safetensors")
        path = self.shared_memory / name
        try:
            facts = path.lstat()
        except OSError as error:
            raise EngineError(
                409,
                "weights_unavailable",
                f"no file {name} in this host's shared memory",
                remedy="Publish with method store if trainer and engine are on different hosts.",
                path=field,
            ) from error
        if not stat.S_ISREG(facts.st_mode) or facts.st_uid != os.getuid():
            raise _invalid(field, f"{name!r} is not a plain file of the engine's user")
        return path

    def _stored(self, key: str, file: WeightFile, target: Path, field: str) -> Path:
        if self.store is None:
            raise EngineError(
                409,
                "weights_unavailable",
                "this engine was started without an artefact store",
                remedy="Start it with --artefacts-url, or publish with method shm.",
                path=field,
            )
        try:
            ref = ArtefactRef(key=key, sha256=file.sha256, size=file.size)
        except ValidationError as error:
            raise _invalid(field, f"not the key and hash of an artefact: {key[:100]!r}") from error
        try:
            return self.store.local_path(ref) or self.store.local_copy(ref, target)
        except ArtefactError as error:
            status = 503 if isinstance(error, ArtefactStoreUnavailableError) else 409
            raise EngineError(status, error.code, str(error), remedy=error.remedy, path=field) from error


def _verify(path: Path, file: WeightFile) -> None:
    with path.open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        sha256 = hashlib.file_digest(opened, "sha256").hexdigest() if size == file.size else "unknown"
    if size != file.size or sha256 != file.sha256:
        raise EngineError(
            503,
            "weights_corrupt",
            f"{file.uri} is not as announced: it has {size} bytes with sha256 {sha256}",
            remedy="Publish again: the file was changed or truncated in transit.",
        )


def _invalid(path: str, message: str) -> EngineError:
    return EngineError(422, "invalid", message, path=path)
