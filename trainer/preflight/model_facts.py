"""What a model's memory depends on, with its weights or without them."""

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

from powermean.engine_selection import text_config
from trainer.preflight.tensors import tensor_shapes

_KNOWN = Path(__file__).with_name("known_models.json")


@dataclass(frozen=True)
class ModelFacts:
    """A text model's config, and the shapes of its weights by name."""

    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def numbers(self) -> int:
        return sum(map(prod, self.shapes.values()))


def in_folder(folder: Path) -> ModelFacts:
    """Of a model that is here."""
    return ModelFacts(text_config(folder), tensor_shapes(folder))


@cache
def of_name(name: str) -> ModelFacts | None:
    """Of a model whose config comes with us: its layers are built without weights. None for others."""
    config = known_configs().get(name)
    if config is None:
        return None
    # Imported here on purpose: PyTorch and transformers take seconds, and models that are here need neither.
    shapes = importlib.import_module("trainer.preflight.weightless").shapes(config)
    return ModelFacts(config, shapes)


@cache
def known_configs() -> dict[str, dict[str, Any]]:
    """By the model's name in the hub."""
    found: dict[str, dict[str, Any]] = json.loads(_KNOWN.read_text())
    return found
