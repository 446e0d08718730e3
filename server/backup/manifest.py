"""What a backup holds: a folder with this manifest, which is written last, and the files that it names.

    manifest.json                    version, revision, time, and each file's size and sha256
    server.db                        the database at one moment
    artefacts/jobs/...               the objects that the database names, by their keys
    attempt_token.pub                the key that audit-head.json is signed with
    audit-head.json                  the newest entry of the audit log in this database
    node/instance                    the worker of a service started by `powermean up`
    secrets/admin.key ...            only on request: see KEYS

Nothing else is ever read from a backup, and nothing is written outside of the places named here.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from pydantic import AwareDatetime, Field

from powermean.artefacts import CHUNK, ArtefactKeyInvalidError, check_key
from powermean.contracts.base import Contract, Sha256
from powermean.errors import PowermeanError
from powermean.tokens import PUBLIC_KEY_NAME
from server.audit.journal import HEAD_FILE
from server.vault.key_file import FILE_NAME as SECRETS_KEYS

FORMAT = 1
MANIFEST = "manifest.json"
DATABASE = "server.db"
ARTEFACTS = "artefacts"
SECRETS = "secrets"
INSTANCE = "node/instance"
# What opens sealed secrets and signs in. The key that signs attempt tokens is in no backup: a restored
# service makes a new one, so that attempts of the lost one that still run can report nothing to it.
KEYS = (SECRETS_KEYS, "admin.key", "node.token")
SINGLE = (DATABASE, HEAD_FILE, PUBLIC_KEY_NAME, INSTANCE, *(f"{SECRETS}/{name}" for name in KEYS))


class BackupError(PowermeanError):
    """A backup can't be made, or this is none that can be used. The message names the file."""

    code = "backup_error"


class BackupDamagedError(BackupError):
    """A file of the backup is not the one that was saved."""

    code = "backup_damaged"


class File(Contract):
    """One file, by its path within the backup."""

    path: str
    size: int = Field(ge=0)
    sha256: Sha256


class Manifest(Contract):
    """Everything about a backup."""

    format: int = FORMAT
    version: str = Field(description="Of the powermean that made it.")
    revision: str = Field(description="Of the database.")
    made_at: AwareDatetime = Field(description="The moment that the database shows.")
    files: tuple[File, ...]
    lost: dict[str, str] = Field({}, description="Objects that were gone or damaged by then, and why.")
    digest: str = Field("", description="Sha256 of all the rest.")

    @property
    def with_keys(self) -> bool:
        return any(file.path.startswith(f"{SECRETS}/") for file in self.files)

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def objects(self) -> int:
        return sum(file.path.startswith(f"{ARTEFACTS}/") for file in self.files)

    def sealed(self) -> Self:
        """With its digest."""
        return self.model_copy(update={"digest": _digest(self.model_dump_json(exclude={"digest"}))})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The manifest of a backup, whose files are not looked at yet.

        Raises BackupError for a folder that is no whole backup, or one of a newer version's, and
        BackupDamagedError.
        """
        try:
            text = (folder / MANIFEST).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise BackupError(
                f"{folder} is not a backup: it has no {MANIFEST}, which is written when all the rest is there"
            ) from None
        damaged = BackupDamagedError(f"{folder / MANIFEST} is damaged: it is not what was written")
        try:
            given = json.loads(text)
            if given["format"] > FORMAT:
                raise BackupError(
                    f"{folder} was made by powermean {given['version']}, and this version can't read it",
                    remedy="Upgrade powermean.",
                )
            found = cls.model_validate_json(text)
        except (ValueError, TypeError, KeyError) as error:
            raise damaged from error
        # as given: an earlier version's lacks later fields
        if found.digest != _digest(found.model_dump_json(exclude={"digest"}, exclude_unset=True)):
            raise damaged
        for file in found.files:
            _check_place(file.path)
        return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _check_place(path: str) -> None:
    """Raises BackupDamagedError for a path that no backup has: it might lead anywhere."""
    kind, _, key = path.partition("/")
    try:
        if path not in SINGLE and not (kind == ARTEFACTS and key == check_key(key)):
            raise BackupDamagedError(f"the backup names {path!r}, which is no place in a backup")
    except ArtefactKeyInvalidError as error:
        raise BackupDamagedError(f"the backup names {path!r}, which is no place in a backup") from error


def pieces(folder: Path, file: File) -> Iterator[bytes]:
    """A file's content, in pieces. Raises BackupDamagedError at its end if it is not what was saved."""
    digest, left = hashlib.sha256(), file.size
    with os.fdopen(_opened(folder, file), "rb") as source:
        while piece := source.read(CHUNK):
            digest.update(piece)
            left -= len(piece)
            yield piece
    if left > 0:
        raise BackupDamagedError(f"{folder / file.path} is damaged: {left} bytes are missing")
    if digest.hexdigest() != file.sha256:
        raise BackupDamagedError(f"{folder / file.path} is damaged: its sha256 is not {file.sha256}")


def _opened(folder: Path, file: File) -> int:
    """A descriptor of a plain file within the folder: no link leads out of it."""
    path = folder / file.path
    try:
        if not path.resolve(strict=True).is_relative_to(folder.resolve()):
            raise BackupDamagedError(f"{path} leads out of the backup")
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        raise BackupDamagedError(f"{path} is missing") from None
    except OSError as error:
        raise BackupDamagedError(f"{path} can't be read: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BackupDamagedError(f"{path} is not a file")
    return descriptor


def described(folder: Path, path: str) -> File:
    """A file of a backup that is being made."""
    digest, size = hashlib.sha256(), 0
    with (folder / path).open("rb") as source:
        while piece := source.read(CHUNK):
            digest.update(piece)
            size += len(piece)
    return File(path=path, size=size, sha256=digest.hexdigest())
