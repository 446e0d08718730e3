"""Facts about a model from its folder, without torch, which the engine's own process does not need."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from powermean.end_tokens import end_tokens
from rollout.engine import EngineError

Shapes = Mapping[str, tuple[int, ...]]

_LENGTH_BYTES = 8  # a safetensors file starts with the length of its JSON header
_MAX_HEADER = 100 << 20
_TIED_HEAD = "lm_head.weight"


@dataclass(frozen=True)
class ModelFolder:
    """What requests and publishes are checked against."""

    name: str
    vocabulary: int
    end_tokens: frozenset[int]
    tied: bool  # output layer and embedding share a weight
    shapes: Shapes  # of the weights in the folder's files


def read_model_folder(folder: Path) -> ModelFolder:
    """Raises EngineError (unknown_model)."""
    try:
        config = json.loads((folder / "config.json").read_text())
        text = config.get("text_config") or config
        return ModelFolder(
            name=folder.name,
            vocabulary=int(text["vocab_size"]),
            end_tokens=end_tokens(folder),
            tied=bool(config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))),
            shapes=read_shapes(sorted(folder.glob("*.safetensors"))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(
            500,
            "unknown_model",
            f"the model in {folder} can't be read: {error!r}",
            remedy="It must be a Hugging Face folder with config.json and safetensors weights.",
        ) from error


def read_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor in safetensors files. Raises ValueError, also for a tensor in two files."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        for name, facts in _header(path).items():
            if name == "__metadata__":
                continue
            if name in shapes:
                raise ValueError(f"{name} is in two files")
            shapes[name] = tuple(facts["shape"])
    return shapes


def renames(model: ModelFolder, published: Shapes) -> dict[str, str]:
    """Names in the publish that differ from the model's: those of tied weights.

    Raises EngineError (weights_mismatch) unless every weight of the model is there once with its shape.
    """
    own = {name: shape for name, shape in model.shapes.items() if not (model.tied and name == _TIED_HEAD)}
    found = dict(published)
    changed = {}
    missing = sorted(own.keys() - found.keys())
    if model.tied and _TIED_HEAD in found:
        if len(missing) != 1:
            raise _mismatch("a tied weight occurs under two names")
        changed[_TIED_HEAD] = missing[0]
        found[missing[0]] = found.pop(_TIED_HEAD)
        missing = []
    if unknown := sorted(found.keys() - own.keys()):
        raise _mismatch(f"the model has no weight {unknown[0]}")
    if missing:
        raise _mismatch(f"weight {missing[0]} is missing ({len(missing)} in all)")
    for name, shape in found.items():
        if shape != own[name]:
            raise _mismatch(f"{name} has shape {list(shape)}, the model's is {list(own[name])}")
    return changed


def _header(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(_MAX_HEADER, os.fstat(file.fileno()).st_size):
            raise ValueError(f"{path.name} is not a safetensors file")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError(f"{path.name} is not a safetensors file")
    return header


def _mismatch(message: str) -> EngineError:
    return EngineError(
        409,
        "weights_mismatch",
        message,
        remedy="Publish all weights of the model that the engine was started with.",
    )
