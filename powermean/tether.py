"""Start a program that dies with its parent: `tether.py PARENT_PID [--shielded] PROGRAM ARGUMENT...`.

Runs as a script between fork and the program, because setting the death signal in the forked child
(subprocess's preexec_fn) is unsafe once the parent has threads. The kernel sends SIGKILL when the
*thread* that started this process ends, so start it from a thread that lives as long as the parent.

A supervisor outlives an upgrade in place and starts this file by the command line that it knew, so new words
in it must be optional.
"""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
SHIELDED = "--shielded"


def tethered(command: Sequence[str], *, shielded: bool = False) -> list[str]:
    """The command line that runs `command` so that it dies with this process.

    `shielded`: SIGTERM ends neither it nor what it starts. Slurm sends that to every process of an
    allocation, and ours have to end in an order that only their supervisor knows. SIGINT ends them.
    """
    how = [SHIELDED] if shielded else []
    script = str(Path(__file__).resolve())
    return [sys.executable, "-I", "-S", script, str(os.getpid()), *how, *command]


def ending_signal() -> signal.Signals:
    """What asks the programs that this one starts to end."""
    shielded = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    return signal.SIGINT if shielded else signal.SIGTERM


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
    parent, *command = arguments
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # the parent ended before the signal was set
        sys.exit(1)
    if command[0] == SHIELDED:  # both are inherited: some libraries set a handler, others the mask
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
        del command[0]
    os.execvp(command[0], command)  # noqa: S606


if __name__ == "__main__":
    _main(sys.argv[1:])
