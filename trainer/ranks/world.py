"""Which of a job's training processes this one is."""

import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """The ranks of a job, and this one's place among them. Ranks of one node are next to each other."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its node
    local_size: int = 1  # ranks on each node

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> "World":
        """By torchrun's variables; alone without them."""
        if "RANK" not in variables:
            return cls()
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        return cls(*(int(variables[name]) for name in names))

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
