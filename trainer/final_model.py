"""The trained model as a Hugging Face folder that from_pretrained loads, tokenizer included."""

from pathlib import Path

from trainer.policy import Policy
from trainer.tokenizing import Tokenizer


def save_model(policy: Policy, tokenizer: Tokenizer, folder: Path) -> None:
    """Write config, weights (safetensors, in the policy's type) and tokenizer into the folder."""
    state = {
        name: weight.to(policy.dtype) if weight.is_floating_point() else weight
        for name, weight in policy.model.state_dict().items()
    }
    model = policy.model
    kept = model.config.dtype
    model.config.dtype = policy.dtype
    try:
        model.save_pretrained(folder, state_dict=state)
    finally:
        model.config.dtype = kept
    tokenizer.save_pretrained(folder)
