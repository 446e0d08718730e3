"""A policy whose model is spread over ranks from the start: it is whole in rank 0's host alone, on no GPU."""

from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from trainer.policy.loading import Compile, empty_model, load_model, make_policy
from trainer.policy.policy import Policy
from trainer.ranks.sharding import from_first_rank, shard


def load_sharded_policy(
    folder: Path,
    mesh: DeviceMesh,
    *,
    leads: bool,
    device: torch.device,
    dtype: torch.dtype,
    temperature: float,
    prepare: Callable[[PreTrainedModel], PreTrainedModel | PeftModel] = lambda model: model,
    gradient_checkpointing: bool = False,
    compiled: Compile = "off",
) -> Policy:
    """See `load_policy`. `prepare` changes a rank's model before, such as by an adapter. A collective."""
    model = prepare(load_model(folder) if leads else empty_model(folder))
    model.train(False)
    shard(model, mesh, dtype, from_first_rank(device))
    return make_policy(
        model,
        dtype=dtype,
        temperature=temperature,
        gradient_checkpointing=gradient_checkpointing,
        compiled=compiled,
    )
