"""Which of a job's training processes this one is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """The ranks of a job, and this one's place among them. Ranks of one node are next to each other."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its node
    local_size: int = 1  # ranks on each node

    @property
    def alone(self) -> bool:
        """There is no process group then."""
        return self.size == 1

    @property
    def leads(self) -> bool:
        """Rank 0 samples, grades, publishes and reports."""
        return self.rank == 0

    @property
    def nodes(self) -> int:
        return self.size // self.local_size
