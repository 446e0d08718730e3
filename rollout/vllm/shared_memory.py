"""Shared memory left by killed vLLM processes: noted while they run, then removed."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_FOLDER = "/dev/shm/"  # noqa: S108 (where the kernel has it)
_KINDS = ("psm_", "sem.mp-")  # vLLM's message queues and Python's locks; weights are removed by others


def used_by(pids: Iterable[int]) -> set[Path]:
    """Files in shared memory that the processes use now or that are named after them."""
    found, mapped = set(), set()
    for pid in pids:
        found.add(Path(_FOLDER, f"__KMP_REGISTERED_LIB_{pid}_{os.getuid()}"))  # Intel's OpenMP
        mapped |= _mapped(pid)
    with os.scandir(_FOLDER) as entries:
        found |= {Path(e) for e in entries if e.name.startswith(_KINDS) and e.inode() in mapped}
    return found


def _mapped(pid: int) -> set[int]:
    """Inodes of mapped files in shared memory, since the name of a lock there is only temporary."""
    with suppress(OSError):  # the process may be gone
        lines = Path(f"/proc/{pid}/maps").read_text().splitlines()
        return {int(line.split(maxsplit=5)[4]) for line in lines if _FOLDER in line}
    return set()


def remove(files: Iterable[Path]) -> None:
    """Remove what is left of them, if it belongs to this user."""
    for file in files:
        with suppress(OSError):
            if file.stat().st_uid == os.getuid():
                file.unlink()
