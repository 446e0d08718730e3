"""How one rank holds a job's model, and how much of the work it does."""

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
        return f"sharded over {self.shards} ranks, replicated over {self.ranks // self.shards}"


def layouts(spec: JobSpec) -> tuple[Layout, ...]:
    """Those that the spec allows, the preferred one first: `auto` replicates where that fits."""
    ranks, local = spec.resources.ranks, spec.resources.ranks_per_node
    by_name = {
        "replicate": Layout(1, ranks),
        "shard": Layout(ranks, ranks),
        "hybrid": Layout(local, ranks),
    }
    if ranks == 1:
        return (Layout(),)
    if spec.training.parallel != "auto":
        return (by_name[spec.training.parallel],)
    return by_name["replicate"], by_name["hybrid"]  # on one node hybrid is shard


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
