"""The trained model as a Hugging Face folder that from_pretrained loads, tokenizer included."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from trainer.failures import TrainingError, is_disk_full
from trainer.learner.lora import served_adapter, served_weights, trained_state
from trainer.learner.model_state import CPU, named_weights, tied_names
from trainer.policy.policy import Policy
from trainer.ranks.gradients import is_sharded
from trainer.ranks.sharding import whole

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
    state = host_copy(policy.model, policy.dtype)
    if isinstance(policy.model, PeftModel):
        save_adapter(policy.model, folder / ADAPTER_FOLDER)
    save_folder(policy.plain_model, policy.dtype, state, source, folder)


def take_part_in_saving(policy: Policy) -> None:
    """What ranks other than the one that saves a sharded model have to do meanwhile."""
    for _ in served_weights(policy.model, policy.dtype):
        pass
    if isinstance(policy.model, PeftModel):
        for _ in served_adapter(policy.model):
            pass


def try_saving(policy: Policy, source: Path, folder: Path) -> None:
    """Save all of the model but its weights: what can fail at the end should fail before the first step.

    Raises TrainingError (unsavable_model).
    """
    try:
        if not is_sharded(policy.model):  # gathering takes all ranks, and the time of a publish
            for _ in served_weights(policy.model):
                pass
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
    state = {name: whole(weight.detach()) for name, weight in trained_state(model).items()}
    model.save_pretrained(str(folder), state_dict=state, save_embedding_layers=False)


def save_folder(
    model: PreTrainedModel, dtype: torch.dtype, state: Mapping[str, Tensor], source: Path, folder: Path
) -> None:
    """Write the model's config, the weights `state`, all of type `dtype`, and what else `source` has."""
    kept = model.config.dtype, model.generation_config
    model.config.dtype, model.generation_config = dtype, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(folder, state_dict=dict(state))
    finally:
        model.config.dtype, model.generation_config = kept
    (folder / "generation_config.json").unlink(missing_ok=True)
    for file in {file for pattern in _COPIED for file in source.glob(pattern)}:
        if file.name not in _WRITTEN and not file.name.endswith(".index.json"):
            target = folder / file.relative_to(source)
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, target)


def host_copy(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """What is served of the model, in the host's memory, as a GPU may have no room; what is tied stays so."""
    state = {
        name: weight.to(CPU, dtype if weight.is_floating_point() else weight.dtype)
        for name, weight in served_weights(model, dtype)
    }
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    tied = tied_names(named_weights(plain))
    return state | {name: state[first] for name, first in tied.items() if first in state}
