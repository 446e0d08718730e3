"""A model's weights by name, each once."""

from collections.abc import Hashable, Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

CPU = torch.device("cpu")


def named_weights(model: nn.Module) -> dict[str, Tensor]:
    """A model's state by name, as it is in the model: names that are tied have the same tensor."""
    state: dict[str, Tensor] = model.state_dict(keep_vars=True)
    return state


def unique_weights(state: Mapping[str, Tensor]) -> list[tuple[str, Tensor]]:
    """A model's state by name; weights that are tied appear once, under their first name."""
    seen: set[Hashable] = set()
    found = []
    for name, weight in state.items():
        place = _place(weight)
        if weight.numel() and place in seen:
            continue
        seen.add(place)
        found.append((name, weight))
    return found


def tied_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """The names that `unique_weights` leaves out, and the name that each is tied to."""
    first = {_place(weight): name for name, weight in unique_weights(state)}
    kept = set(first.values())
    return {name: first[_place(weight)] for name, weight in state.items() if name not in kept}


def _place(weight: Tensor) -> Hashable:
    # A rank's rows of a sharded weight may be none, and what takes no memory has no place of its own in it.
    return id(weight) if isinstance(weight, DTensor) or weight.is_meta else (weight.data_ptr(), weight.shape)
