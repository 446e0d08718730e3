"""The ranks of an attempt on one node: its training processes, each with torchrun's environment variables."""

import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass

from powermean.contracts.attempts import Claim
from powermean.contracts.resources import ResourceSpec
from powermean.processes import is_stopped
from worker.attempt.rendezvous import Meeting

VARIABLES = (  # torchrun's
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    *("GROUP_RANK", "GROUP_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
STORE_FD = "POWERMEAN_STORE_FD"  # the descriptor of the socket on which rank 0 makes the store


@dataclass(frozen=True)
class Place:
    """A rank's place in its job; ranks of one node are next to each other."""

    node_rank: int
    local_rank: int
    resources: ResourceSpec

    @property
    def rank(self) -> int:
        return self.node_rank * self.resources.ranks_per_node + self.local_rank

    def environment(self, meeting: Meeting) -> dict[str, str]:
        """What torchrun would set."""
        numbers = {
            "RANK": self.rank,
            "WORLD_SIZE": self.resources.ranks,
            "LOCAL_RANK": self.local_rank,
            "LOCAL_WORLD_SIZE": self.resources.ranks_per_node,
            "GROUP_RANK": self.node_rank,
            "GROUP_WORLD_SIZE": self.resources.nodes,
            "MASTER_PORT": meeting.port,
        }
        return {name: str(number) for name, number in numbers.items()} | {"MASTER_ADDR": meeting.address}


def places(claim: Claim) -> list[Place]:
    """Those of the ranks of the claim's node, in order."""
    resources = claim.spec.resources
    return [Place(claim.node_rank, local, resources) for local in range(resources.ranks_per_node)]


class Ranks:
    """Running ranks of a node, the first one first."""

    def __init__(self, first: int, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        self._ranks = dict(enumerate(processes, start=first))
        self._stopped_at: dict[int, float] = {}

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(self._ranks)

    def codes(self) -> dict[int, int]:
        """Exit status of each rank that has ended."""
        return {rank: code for rank, process in self._ranks.items() if (code := process.poll()) is not None}

    @property
    def running(self) -> set[int]:
        """Processes of those that have not ended."""
        return {process.pid for process in self._ranks.values() if process.poll() is None}

    @property
    def failed(self) -> dict[int, int]:
        """Exit status of each rank that has failed."""
        return {rank: code for rank, code in self.codes().items() if code != 0}

    @property
    def all_ended(self) -> bool:
        return len(self.codes()) == len(self._ranks)

    @property
    def over(self) -> bool:
        """Whether rank 0 has ended or any has failed: the others have to end then."""
        return self.all_ended or bool(self.failed) or 0 in self.codes()

    def frozen(self, limit_s: float) -> int | None:
        """A rank that a signal has stopped for so long; the others wait for it."""
        now = time.monotonic()
        stopped = [rank for rank, process in self._ranks.items() if is_stopped(process.pid)]
        self._stopped_at = {rank: self._stopped_at.get(rank, now) for rank in stopped}
        return next((rank for rank in stopped if now - self._stopped_at[rank] > limit_s), None)

    def wait(self) -> None:
        """Until all have ended."""
        for process in self._ranks.values():
            process.wait()
