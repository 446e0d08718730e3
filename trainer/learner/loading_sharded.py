"""A policy whose model is spread over ranks from the start: it is whole in rank 0's host alone, on no GPU."""

from pathlib import Path

import torch
from torch.distributed.device_mesh import DeviceMesh

from powermean.contracts.models import LoraSpec
from trainer.learner.lora import attach
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
    adapter: tuple[LoraSpec, str] | None = None,
    gradient_checkpointing: bool = False,
    compiled: Compile = "off",
) -> Policy:
    """See `load_policy`. `adapter`: a new one, and the base model's name for its export. A collective."""
    plain = load_model(folder) if leads else empty_model(folder)
    model = plain if adapter is None else attach(plain, *adapter)
    model.train(False)
    shard(model, mesh, dtype, from_first_rank(device))
    return make_policy(
        model,
        dtype=dtype,
        temperature=temperature,
        gradient_checkpointing=gradient_checkpointing,
        compiled=compiled,
    )
