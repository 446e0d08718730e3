"""What must hold for a job of several ranks, or an engine of several GPUs, before it is queued."""

from collections.abc import Mapping
from typing import Any

from powermean.contracts.job import JobSpec
from powermean.engine_selection import GPU_MEMORY_SHARE, undivided_heads
from powermean.memory import gib
from trainer.failures import TrainingError
from trainer.preflight.model_facts import ModelFacts
from worker.launcher import OWN_GPU_SHARE


def check_heads(spec: JobSpec, config: Mapping[str, Any]) -> None:
    """Raises TrainingError (undivided_heads) where tensor parallel can't split the attention."""
    if (why := undivided_heads(config, spec.rollout.gpus_per_replica)) is not None:
        raise TrainingError(
            "undivided_heads",
            why,
            path="rollout.gpus_per_replica",
            remedy="take a number of GPUs that divides the heads, and more rollout.replicas",
        )


def check_budget(spec: JobSpec, longest: int) -> None:
    """Raises TrainingError (budget_too_small) where a micro-batch could not hold one trajectory."""
    budget = spec.training.micro_batch_tokens
    if budget != "auto" and budget < longest:
        raise TrainingError(
            "budget_too_small",
            f"a trajectory may have {longest} tokens, and a micro-batch {budget}",
            path="training.micro_batch_tokens",
            remedy=f"set it to {longest} or more, or to auto; or lower rollout.max_new_tokens",
        )


def check_engine_memory(spec: JobSpec, model: ModelFacts, total: int, tokens: int) -> None:
    """Raises TrainingError (not_enough_memory) where vLLM's share of its GPUs, each of `total` bytes, is too
    small for the weights in bfloat16 and the cache of one trajectory of so many tokens."""
    parts = spec.rollout.gpus_per_replica
    share = float(OWN_GPU_SHARE) if spec.resources.placement == "split" else GPU_MEMORY_SHARE
    room, needed = int(share * total), (2 * model.numbers + _cache(model.config, tokens)) // parts
    if needed <= room:
        return
    raise TrainingError(
        "not_enough_memory",
        f"an engine on {parts} GPU{'s' * (parts > 1)} needs {gib(needed)} of each, and may have {gib(room)}",
        path="rollout.gpus_per_replica",
        remedy="give a replica more GPUs"
        + (
            "" if spec.resources.placement == "split" else ", or GPUs of its own (resources.placement: split)"
        ),
    )


def _cache(config: Mapping[str, Any], tokens: int) -> int:
    """Bytes of keys and values; 0 where the config doesn't tell."""
    heads, hidden = config.get("num_attention_heads"), config.get("hidden_size")
    layers, keys = config.get("num_hidden_layers"), config.get("num_key_value_heads") or heads
    if not all(isinstance(one, int) for one in (heads, hidden, layers, keys)):
        return 0
    size = config.get("head_dim") or int(hidden) // int(heads)  # type: ignore[arg-type]
    return 2 * 2 * int(layers) * int(keys) * int(size) * tokens  # type: ignore[arg-type]
