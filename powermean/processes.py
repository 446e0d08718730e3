"""Linux processes: whether they are alive, their descendants, and how to end them for certain."""

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from pydantic import Field

from powermean.contracts.base import Contract

POLL_S = 0.05


class ProcessId(Contract):
    """Identifies a process for good: pids are reused, a pid with its start time is not."""

    pid: int = Field(ge=1)
    started: int = Field(description="Clock ticks after boot.")

    @property
    def alive(self) -> bool:
        return start_time(self.pid) == self.started

    @classmethod
    def own(cls) -> "ProcessId":
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> "ProcessId":
        """Raises ProcessLookupError when there is no such process."""
        started = start_time(pid)
        if started is None:
            raise ProcessLookupError(errno.ESRCH, f"no process {pid}")
        return cls(pid=pid, started=started)


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on; None if the process is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields


def start_time(pid: int) -> int | None:
    """Start time of a live process, in clock ticks after boot."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def is_stopped(pid: int) -> bool:
    """Whether a live process is frozen by a signal (SIGSTOP)."""
    fields = _stat(pid)
    return fields is not None and fields[0] == "T"


def _pids() -> list[int]:
    return [int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit()]


def descendants(root: int) -> set[int]:
    """Live descendants of `root`, without `root` itself."""
    return trees([root])[root]


def trees(roots: Iterable[int]) -> dict[int, set[int]]:
    """Live descendants of each root, without the root itself, in one pass over all processes."""
    children: dict[int, list[int]] = {}
    for pid in _pids():
        fields = _stat(pid)
        if fields:
            children.setdefault(int(fields[1]), []).append(pid)
    below: dict[int, set[int]] = {}
    for root in roots:
        found: set[int] = set()
        frontier = [root]
        while frontier:
            for child in children.get(frontier.pop(), ()):
                if child not in found:
                    found.add(child)
                    frontier.append(child)
        below[root] = found
    return below


def cpu_seconds(pid: int) -> float | None:
    """CPU time that a live process has spent, without its children."""
    fields = _stat(pid)
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") if fields else None


def resident_bytes(pid: int) -> int:
    """Memory of a process that is in RAM, what it shares with others included; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (FileNotFoundError, ProcessLookupError):
        return 0


def marked(name: str, value: str) -> set[int]:
    """Live processes of this user that were started with NAME=value in their environment."""
    wanted = f"{name}={value}".encode()
    found = set()
    for pid in _pids():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes()
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if wanted in environment.split(b"\0") and _stat(pid):
            found.add(pid)
    return found


def send(pids: Iterable[int], number: signal.Signals) -> None:
    """Signal processes; those that are gone are ignored."""
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def reap() -> None:
    """Reap ended children that nobody waits for, such as adopted orphans."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return


def end_all(
    find: Callable[[], set[int]],
    grace_s: float,
    deadline_s: float = 10.0,
    ask: signal.Signals = signal.SIGTERM,
) -> set[int]:
    """Ask what `find` finds to end, and SIGKILL what is still there after `grace_s`.

    Repeats until nothing is found, to catch processes started meanwhile. Returns what is left after another
    `deadline_s`: normally nothing.
    """
    now = time.monotonic()
    hard, last = now + grace_s, now + grace_s + deadline_s
    told: set[int] = set()
    while (left := find()) and time.monotonic() < last:
        if time.monotonic() >= hard:
            send(left, signal.SIGKILL)
        else:
            send(left - told, ask)
            told |= left
        time.sleep(POLL_S)
    return left


def exit_text(code: int) -> str:
    """`was killed by SIGSEGV`, `failed with exit status 3`."""
    if code >= 0:
        return f"failed with exit status {code}" if code else "ended"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"


class Lifeline:
    """Notices when another process is gone, even if its pid has been reused."""

    def __init__(self, pid: int) -> None:
        try:
            self._fd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._fd = None

    @property
    def cut(self) -> bool:
        if self._fd is None:
            return True
        return bool(select.select([self._fd], [], [], 0)[0])
