"""Shapes of a model's weights from its config alone, on PyTorch's meta device."""

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from trainer.learner.lora import without_weights


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """By name; weights that are tied count once."""
    kind = {name: value for name, value in config.items() if name != "model_type"}
    model = without_weights(AutoConfig.for_model(config["model_type"], **kind))
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}
