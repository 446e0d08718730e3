"""A model's weights by name, each once."""

from collections.abc import Mapping

import torch
from torch import Tensor

CPU = torch.device("cpu")
META = torch.device("meta")


def unique_weights(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """A model's state by name; weights that are tied appear once, under their first name.

    Meta weights have no place in memory to be known by: all of them appear.
    """
    seen: set[tuple[int, torch.Size]] = set()
    found = []
    for name, weight in state.items():
        place = (weight.data_ptr(), weight.shape)
        if weight.numel() and not weight.is_meta and place in seen:
            continue
        seen.add(place)
        found.append((name, weight))
    return found
