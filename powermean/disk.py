"""Disks: how to tell that one is full, space held back for what has to be written then, names made durable.

The report of a full disk has to be written to that disk. A file that is removed at that moment makes room.
"""

import errno
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SCARCE_BYTES = 128 * 2**20  # a disk with less room counts as full: nothing new is started there


def is_full(error: BaseException) -> bool:
    """Whether an error says that there is no room on a disk."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def first_full(folders: Iterable[Path]) -> Path | None:
    """The first of these folders whose disk counts as full. Folders that don't exist yet are left out."""
    return next((folder for folder in folders if folder.exists() and free_bytes(folder) < SCARCE_BYTES), None)


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not exist yet."""
    there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    return shutil.disk_usage(there).free


def sync_folder(folder: Path) -> None:
    """Put the names of its files on the disk: syncing a file leaves out its name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class Ballast:
    """A file that holds `size` bytes until they are needed."""

    path: Path
    size: int

    def hold(self) -> None:
        """Take the space, if it is not held yet and there is as much again."""
        if self.path.exists() or free_bytes(self.path.parent) < 2 * self.size:
            return
        part = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            os.posix_fallocate(descriptor, 0, self.size)
            part.rename(self.path)
        except OSError as error:  # somebody else was faster
            part.unlink(missing_ok=True)
            if not is_full(error):
                raise
        finally:
            os.close(descriptor)

    def release(self) -> bool:
        """Give up the space; returns whether any was held."""
        try:
            self.path.unlink()
        except FileNotFoundError:
            return False
        return True
