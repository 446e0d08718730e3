"""How one rank holds a job's model, as the ranks will decide it themselves."""

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from powermean.contracts.job import JobSpec

_LAYER = re.compile(r"^(.*?\.\d+)\.")  # model.layers.7 of model.layers.7.mlp.up_proj.weight


@dataclass(frozen=True)
class Layout:
    """`shards` ranks hold one copy of the model together; `ranks` share out each minibatch."""

    shards: int = 1
    ranks: int = 1

    @property
    def words(self) -> str:
        """As people call it."""
        if self.ranks == 1:
            return "one rank"
        if self.shards == 1:
            return f"replicated over {self.ranks} ranks"
        if self.shards == self.ranks:
            return f"sharded over {self.ranks} ranks"
        return f"sharded over {self.shards} ranks, {self.ranks // self.shards} replicas"


def layout_of(spec: JobSpec, numbers: int, trained: int, room: int | None) -> Layout:
    """For a model of so many numbers, on ranks with so much room each (None: with enough)."""
    ranks, local = spec.resources.ranks, spec.resources.ranks_per_node
    how = spec.training.parallel
    if ranks == 1 or how == "replicate" or (how == "auto" and room is None):
        return Layout(1, ranks)
    # Imported here on purpose: PyTorch takes seconds to import, and a job of one rank is checked without it.
    sharding = importlib.import_module("trainer.ranks.sharding")
    world = importlib.import_module("trainer.ranks.world").World(size=ranks, local_size=local)
    needed = sharding.held_bytes(spec, numbers, trained)
    shards = {"replicate": 1, "shard": ranks, "hybrid": local}
    return Layout(shards[sharding.layout(how, world, needed, room or 0)], ranks)


def by_layer(shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
    """Numbers of the largest decoder layer, and of all that is in none: embeddings, output layer, norm."""
    layers: dict[str, int] = {}
    outside = 0
    for name, shape in shapes.items():
        if found := _LAYER.match(name):
            layers[found[1]] = layers.get(found[1], 0) + prod(shape)
        else:
            outside += prod(shape)
    return max(layers.values(), default=0), outside
