"""The trained model as a Hugging Face folder that from_pretrained loads, tokenizer included."""

from collections.abc import Mapping
from pathlib import Path

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from trainer.learner.lora import served_state
from trainer.learner.model_state import CPU
from trainer.learner.tokenizing import Tokenizer
from trainer.policy.policy import Policy

ADAPTER_FOLDER = "adapter"


def save_model(policy: Policy, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, weights (safetensors, in the policy's type) and tokenizer into the folder.

    With an adapter these are the merged weights, and the folder `adapter` in it holds the adapter as peft
    and vLLM load it.
    """
    state = _copied(served_state(policy.model, CPU), policy.dtype)
    model = policy.model
    if isinstance(model, PeftModel):
        model.save_pretrained(str(folder / ADAPTER_FOLDER), save_embedding_layers=False)
        model = model.get_base_model()  # type: ignore[assignment]  # declared as any module
    assert isinstance(model, PreTrainedModel)
    kept = model.config.dtype
    model.config.dtype = policy.dtype
    try:
        model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.dtype = kept
    tokenizer.save_pretrained(folder)


def _copied(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """In the host's memory: a GPU need not have room for a second copy. What is tied stays so."""
    copies: dict[tuple[int, torch.Size], Tensor] = {}
    for weight in state.values():
        place = (weight.data_ptr(), weight.shape)
        if place not in copies:
            copies[place] = weight.to(device=CPU, dtype=dtype if weight.is_floating_point() else weight.dtype)
    return {name: copies[weight.data_ptr(), weight.shape] for name, weight in state.items()}
