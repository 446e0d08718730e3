"""A folder that appears whole or not at all."""

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path

from powermean.disk import SCARCE_BYTES, free_bytes, is_full
from server.backup.manifest import BackupError


@contextmanager
def built(target: Path, aside: Path | None = None) -> Iterator[Path]:
    """A new folder beside `target`, which becomes `target` at the end, or goes with the failure.

    What is at `target` is moved `aside` then; without a place for it, BackupError is raised, also if it has
    come meanwhile: of two at once, one is the first. What a killed predecessor has left is removed.
    """
    if target.is_mount():
        raise BackupError(f"{target} is a disk of its own", remedy="Name a folder that is to be made on it.")
    if aside is None:
        check_vacant(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(target)
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    part.mkdir(mode=0o700)
    lock = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield part
        os.sync()
        _move(part, target, aside)
    except OSError as error:
        if is_full(error):
            raise disk_full(target) from error
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise _not_vacant(target) from error
        raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
        os.close(lock)


def _move(part: Path, target: Path, aside: Path | None) -> None:
    if aside is not None:
        target.rename(aside)
    else:
        check_vacant(target)
    try:
        part.rename(target)
    except OSError:
        if aside is not None:
            aside.rename(target)
        raise


def check_vacant(target: Path) -> None:
    """Raises BackupError unless there is nothing at `target`, or an empty folder."""
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise _not_vacant(target)


def check_room(target: Path, needed: int) -> None:
    """Raises BackupError where the disk has less room than that, and some to spare."""
    free = free_bytes(target)
    if free < needed + SCARCE_BYTES:
        raise BackupError(
            f"{(needed + SCARCE_BYTES) / 2**30:.1f} GiB are needed in {target.parent}, "
            f"and {free / 2**30:.1f} GiB are free",
            remedy="Make room, or choose a folder on another disk.",
        )


def disk_full(target: Path) -> BackupError:
    """The disk on which `target` was to be."""
    return BackupError(
        f"the disk of {target.parent} is full; nothing was left there", remedy="Make room on it."
    )


def _not_vacant(target: Path) -> BackupError:
    return BackupError(f"{target} is there already", remedy="Name a folder that does not exist yet.")


def _remove_abandoned(target: Path) -> None:
    """Remove unfinished folders whose makers are gone; those that live hold a lock on theirs."""
    for part in target.parent.glob(f".{escape(target.name)}.*.part"):
        with suppress(OSError):
            lock = os.open(part, os.O_RDONLY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(part, ignore_errors=True)
            finally:
                os.close(lock)
