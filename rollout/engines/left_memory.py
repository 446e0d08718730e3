"""Shared memory that vLLM's processes leave when they are killed: seen while they live, then removed."""

import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

_FOLDER = "/dev/shm/"  # noqa: S108 (where the kernel has it)
# Of vLLM's message queues, Python's locks and Intel's OpenMP. Weights (powermean-*) are others' to remove.
_KINDS = ("psm_", "sem.mp-", "__KMP_REGISTERED_LIB_")


def mapped(pids: Iterable[int]) -> set[Path]:
    """Files of these kinds in shared memory that the processes use now."""
    found = set()
    for pid in pids:
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
