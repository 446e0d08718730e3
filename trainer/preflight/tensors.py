"""What a model's safetensors files hold, from their headers."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

_NO_LAYERS = frozenset({"embed_tokens", "lm_head", "wte", "wpe", "shared"})  # have matrices, take no adapter


def tensor_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name; none where a file can't be read: who loads the model says what is wrong with it."""
    found = {}
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dictionary)
                    found[name] = tuple(tensors.get_slice(name).get_shape())
    except (OSError, SafetensorError):
        return {}
    return found


def linear_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of weight matrices by the last name of their layer, the output layer left out.

    Some of them may not be linear: what peft can't adapt is an error when training starts.
    """
    found: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        layer, _, kind = name.rpartition(".")
        last = layer.rpartition(".")[2]
        if kind == "weight" and len(shape) == 2 and last not in _NO_LAYERS:
            found.setdefault(last, []).append(shape)
    return found
