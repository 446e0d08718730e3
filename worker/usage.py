"""What attempts use of the node's CPUs and memory, from /proc: their supervisors with all descendants."""

import time
from collections.abc import Iterable, Mapping

from powermean.contracts.attempts import AttemptUse
from powermean.processes import ProcessId, cpu_seconds, resident_bytes, trees

MIB = 2**20
EVERY_S = 10.0  # between looks: each reads all of /proc


class UsageMeter:
    """Two looks make a number of busy cores, so an attempt is first reported by the second one."""

    def __init__(self) -> None:
        self._before: dict[str, dict[int, float]] = {}  # CPU seconds by attempt and process
        self._looked = float("-inf")
        self._use: tuple[AttemptUse, ...] = ()

    def look(self, supervisors: Mapping[str, ProcessId]) -> tuple[AttemptUse, ...]:
        """What each attempt uses, given its supervisor; looked up every ten seconds."""
        now = time.monotonic()
        if now - self._looked >= EVERY_S:
            below = trees(process.pid for process in supervisors.values())
            seconds = {
                attempt_id: _spent(below[process.pid] | {process.pid})
                for attempt_id, process in supervisors.items()
            }
            self._use = tuple(
                AttemptUse(
                    attempt_id=attempt_id,
                    cpu=round(_grown(self._before[attempt_id], spent) / (now - self._looked), 2),
                    memory_mb=sum(map(resident_bytes, spent)) // MIB,
                )
                for attempt_id, spent in seconds.items()
                if attempt_id in self._before
            )
            self._before, self._looked = seconds, now
        return self._use


def _grown(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """CPU seconds spent in between; what a process spent that has ended meanwhile is not known."""
    return sum(max(0.0, seconds - before.get(pid, 0.0)) for pid, seconds in after.items())


def _spent(pids: Iterable[int]) -> dict[int, float]:
    """CPU seconds of each process that is still there."""
    return {pid: seconds for pid in pids if (seconds := cpu_seconds(pid)) is not None}
