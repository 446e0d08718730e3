"""A model's weights by name, each once."""

from collections.abc import Mapping

import torch
from torch import Tensor

CPU = torch.device("cpu")
META = torch.device("meta")


def unique_weights(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """A model's state by name; weights that are tied appear once, under their first name."""
    seen: set[tuple[int, torch.Size]] = set()
    found = []
    for name, weight in state.items():
        place = (weight.data_ptr(), weight.shape)
        if weight.numel() and place in seen:
            continue
        seen.add(place)
        found.append((name, weight))
    return found
