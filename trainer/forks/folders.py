"""From a checkpoint's weights to folders that transformers and peft load."""

from pathlib import Path
from typing import Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from powermean.contracts.models import LoraSpec
from trainer.learner import checkpoint
from trainer.learner.final_model import host_copy, save_adapter, save_folder
from trainer.learner.lora import attach, without_weights

Dtype = Literal["float32", "bfloat16"]
TYPES: dict[Dtype, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def model_with(
    weights: Path, base: Path, folder: Path, lora: LoraSpec | None = None, dtype: Dtype = "float32"
) -> None:
    """Write the model in `base` with the weights of a checkpoint, or with its adapter merged.

    Raises TrainingError (checkpoint_unusable).
    """
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        base, dtype=torch.float32, trust_remote_code=False, use_safetensors=True, local_files_only=True
    )
    whole = model if lora is None else attach(model, lora, "")
    checkpoint.load_weights(weights, whole)
    save_folder(model, TYPES[dtype], host_copy(whole, TYPES[dtype]), base, folder)


def adapter_of(weights: Path, base: Path, lora: LoraSpec, name: str, folder: Path) -> None:
    """Write a checkpoint's adapter as peft and vLLM load it; only the config of `base` is read.

    Raises TrainingError (checkpoint_unusable).
    """
    config = AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    model = attach(without_weights(config), lora, name)
    checkpoint.load_weights(weights, model)
    save_adapter(model, folder)
