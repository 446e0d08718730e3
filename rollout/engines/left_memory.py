"""Shared memory that vLLM's processes leave when they are killed: seen while they live, then removed."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_FOLDER = "/dev/shm/"  # noqa: S108 (where the kernel has it)
_KINDS = ("psm_", "sem.mp-")  # of vLLM's message queues and Python's locks; weights are others' to remove


def used_by(pids: Iterable[int]) -> set[Path]:
    """Files in shared memory that the processes use now, or that bear their names."""
    found = set()
    for pid in pids:
        found.add(Path(_FOLDER, f"__KMP_REGISTERED_LIB_{pid}_{os.getuid()}"))  # Intel's OpenMP
        with suppress(OSError):  # it may be gone
            for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
                _, _, name = line.partition(_FOLDER)
                if name.startswith(_KINDS) and not name.endswith(" (deleted)"):
                    found.add(Path(_FOLDER, name))
    return found


def remove(files: Iterable[Path]) -> None:
    """Remove what is left of them, as far as it is ours."""
    for file in files:
        with suppress(OSError):
            if file.stat().st_uid == os.getuid():
                file.unlink()
