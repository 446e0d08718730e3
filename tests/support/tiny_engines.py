"""A tiny random model, and the types of the fixtures in conftest."""

from collections.abc import Callable
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from powermean.contracts.rollout import PublishRequest
from rollout.transformers.engine import TransformersEngine
from tests.support.tiny_model import char_tokenizer, tiny_config

JOB = "job-1"
END_ID = 1  # the pad token has the same id here, as in many real models

MakeEngine = Callable[..., TransformersEngine]
Publish = Callable[..., PublishRequest]


def save_tiny_model(folder: Path, *, tied: bool = True, seed: int = 0, **changes: object) -> Path:
    """An untrained Llama whose next-token distributions are far from uniform. `changes` go to its config."""
    torch.manual_seed(seed)
    config = tiny_config(tie_word_embeddings=tied, initializer_range=0.3, pad_token_id=END_ID, **changes)
    LlamaForCausalLM(config).save_pretrained(folder)
    char_tokenizer().save_pretrained(folder)
    return folder
