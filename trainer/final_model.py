"""The trained model as a Hugging Face folder that from_pretrained loads, tokenizer included."""

from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedModel

from trainer.lora import served_state
from trainer.policy import Policy
from trainer.tokenizing import Tokenizer

ADAPTER_FOLDER = "adapter"


def save_model(policy: Policy, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, weights (safetensors, in the policy's type) and tokenizer into the folder.

    With an adapter these are the merged weights, and the folder `adapter` in it holds the adapter as peft
    and vLLM load it.
    """
    state = {
        name: weight.to(policy.dtype) if weight.is_floating_point() else weight
        for name, weight in served_state(policy.model).items()
    }
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
