"""The trained model as a Hugging Face folder that from_pretrained loads, tokenizer included."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from trainer.failures import TrainingError, is_disk_full
from trainer.learner.lora import served_state
from trainer.learner.model_state import CPU, META
from trainer.policy.policy import Policy

ADAPTER_FOLDER = "adapter"

# What training does not change is copied as it is: transformers refuses to write some files that it reads,
# such as a generation_config.json with a temperature and no sampling.
_COPIED = ("*.json", "*.jinja", "*.txt", "*.model", "additional_chat_templates/*.jinja")
_WRITTEN = ("config.json", "adapter_config.json")


def save_model(policy: Policy, source: Path, folder: Path) -> None:
    """Write config and weights (safetensors, in the policy's type) into the folder; the rest, tokenizer and
    generation config, comes from `source`, the folder that the model was loaded from.

    With an adapter these are the merged weights, and the folder `adapter` in it holds the adapter as peft
    and vLLM load it.
    """
    if isinstance(policy.model, PeftModel):
        save_adapter(policy.model, folder / ADAPTER_FOLDER)
    save_folder(policy.plain_model, policy.dtype, served_state(policy.model, CPU), source, folder)


def try_saving(policy: Policy, source: Path, folder: Path) -> None:
    """Save all of the model but its weights: what can fail at the end should fail before the first step.

    Raises TrainingError (unsavable_model).
    """
    try:
        if isinstance(policy.model, PeftModel):
            served_state(policy.model, META)
        save_folder(policy.plain_model, policy.dtype, {}, source, folder)
    except (OSError, ValueError, TypeError, KeyError) as error:
        if is_disk_full(error):
            raise
        raise TrainingError(
            "unsavable_model",
            f"the model could not be saved after training: {error}",
            path="model",
            remedy="mend what the message names in the model's folder, or choose another model",
        ) from error


def save_adapter(model: PeftModel, folder: Path) -> None:
    """Write the adapter as peft and vLLM load it."""
    model.save_pretrained(str(folder), save_embedding_layers=False)


def save_folder(
    model: PreTrainedModel, dtype: torch.dtype, state: Mapping[str, Tensor], source: Path, folder: Path
) -> None:
    """Write the model's config and the weights `state` in the type `dtype`, and what else `source` has."""
    kept = model.config.dtype, model.generation_config
    model.config.dtype, model.generation_config = dtype, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(folder, state_dict=_copied(state, dtype))
    finally:
        model.config.dtype, model.generation_config = kept
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in {file for pattern in _COPIED for file in source.glob(pattern)}:
        if file.name not in _WRITTEN and not file.name.endswith(".index.json"):
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def _copied(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In the host's memory: a GPU need not have room for a second copy. What is tied stays so."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    for weight in state.values():
        place = (weight.data_ptr(), weight.shape)
        if place not in copies:
            copies[place] = weight.to(device=CPU, dtype=dtype if weight.is_floating_point() else weight.dtype)
    return {name: copies[weight.data_ptr(), weight.shape] for name, weight in state.items()}
