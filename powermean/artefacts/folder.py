"""A store that is a folder: whether it is still there, and how files get into it whole.

A folder that is a store holds the file MARKER. Where it is missing, the disk is not mounted or the folder was
replaced: what is written there would be lost, and what is missing there is not gone.
"""

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from powermean.artefacts.errors import ArtefactKeyInvalidError, ArtefactStoreUnavailableError
from powermean.artefacts.keys import check_key
from powermean.disk import sync_folder

MARKER = ".powermean-store"
TEMPORARY_FOLDER = ".incoming"
TEMPORARY_LIFETIME_S = 86_400.0


class StoreFolder:
    """The folder of one store. Raises OSError, and ArtefactError where it is not what it should be."""

    def __init__(self, path: Path, *, existing: bool) -> None:
        """`existing`: see ArtefactStore."""
        self.path = path.resolve()
        self._existing = existing
        self._seen = False  # the marker, by this process
        with suppress(OSError):  # a disk that does not answer: the first call says so
            self._seen = self._marker.exists()

    @property
    def _marker(self) -> Path:
        return self.path / MARKER

    def make(self) -> None:
        """Make it a store, unless it is one."""
        self.path.mkdir(parents=True, exist_ok=True)
        if not self._marker.exists():  # it may be somebody else's
            self._marker.touch()
        self._seen = True

    @property
    def is_empty(self) -> bool:
        """Empty or missing: a new store, or a disk that is not mounted."""
        return not (self.path.is_dir() and any(self.path.iterdir()))

    def check_mounted(self, *, to_write: bool = False) -> Path:
        """The folder. Raises ArtefactStoreUnavailableError where it is not the store that it was."""
        if self._marker.exists():
            self._seen = True
        elif self._seen or self._existing:
            raise ArtefactStoreUnavailableError(
                f"the folder {self.path} is not the artefact store: it has no {MARKER}",
                remedy="Is its disk mounted? Does POWERMEAN_ARTEFACTS_URL name the server's store?",
            )
        elif to_write:
            self.make()
        return self.path

    def path_of(self, key: str) -> Path:
        """Where the object or owner lies. Raises ArtefactKeyInvalidError for a place outside the folder."""
        folder = self.check_mounted()
        path = folder / check_key(key)
        if not path.resolve().is_relative_to(folder):
            raise ArtefactKeyInvalidError(f"artefact {key} lies outside the store")
        return path

    def is_on_disk_of(self, path: Path) -> bool:
        """Whether the file can be moved into the folder without being copied."""
        folder = self.check_mounted(to_write=True)
        return path.stat().st_dev == folder.stat().st_dev and not path.is_symlink()

    @contextmanager
    def temporary_file(self) -> Iterator[Path]:
        """A path for a file that is being written; what is left there at the end is removed."""
        folder = self.check_mounted(to_write=True) / TEMPORARY_FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / secrets.token_hex(16)
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def adopt(self, file: Path, key: str) -> None:
        """Move a finished file on the same disk into place, durably."""
        target = self.path_of(key)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
        sync_folder(target.parent)

    def sweep(self) -> None:
        """Remove half-written files that dead writers left more than a day ago."""
        oldest = time.time() - TEMPORARY_LIFETIME_S
        for path in (self.path / TEMPORARY_FOLDER).glob("*"):
            if path.stat().st_mtime < oldest:
                path.unlink(missing_ok=True)
