"""Start a program that dies with its parent: `python tether.py PARENT_PID PROGRAM ARGUMENT...`.

Runs as a script between fork and the program, because setting the death signal in the forked child
(subprocess's preexec_fn) is unsafe once the parent has threads. The kernel sends SIGKILL when the
*thread* that started this process ends, so start it from a thread that lives as long as the parent.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def tethered(command: Sequence[str]) -> list[str]:
    """The command line that runs `command` so that it dies with this process."""
    return [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(os.getpid()), *command]


def prctl(option: int, value: int) -> None:
    """Raises OSError if the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def adopt_orphans() -> None:
    """Become the parent of descendants whose own parent ends, so none escapes."""
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def _main(arguments: list[str]) -> None:
    parent = int(arguments[0])
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent ended before the signal was set
        sys.exit(1)
    os.execvp(arguments[1], arguments[1:])  # noqa: S606


if __name__ == "__main__":
    _main(sys.argv[1:])
