"""A dry run of an adapter on the model's layers, without their weights: attach, merge, names."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor
from transformers import AutoConfig

from powermean.contracts.models import LoraSpec
from trainer.failures import TrainingError
from trainer.learner.lora import adapter_shape, attach, served_weights, without_weights
from trainer.learner.model_state import named_weights, unique_weights


def try_adapter(folder: Path, lora: LoraSpec) -> None:
    """Raises TrainingError: unknown_modules where the model's layers can't take the adapter or be merged with
    it, unknown_model where transformers does not know the model."""
    try:
        model = without_weights(
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise TrainingError(
            "unknown_model",
            f"the model in {folder} can't be built: {error}",
            path="model",
            remedy="it must be a causal language model that transformers knows",
        ) from error
    plain = _shapes(unique_weights(named_weights(model)))
    adapted = attach(model, lora, "")
    if adapter_shape(adapted).target_modules and _shapes(served_weights(adapted)) == plain:
        return
    raise TrainingError(
        "unknown_modules",
        "an adapter on these layers can't be merged into the model's weights",
        path="model.lora.target_modules",
        remedy="name the attention's layers alone, e.g. [q_proj, v_proj]",
    )


def _shapes(weights: Iterable[tuple[str, Tensor]]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in weights}
