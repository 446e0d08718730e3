"""What must hold for a job of several ranks, or an engine of several GPUs, before it is queued."""

from collections.abc import Collection, Mapping
from typing import Any

from powermean.contracts.job import JobSpec
from powermean.engine_selection import GPU_MEMORY_SHARE
from powermean.memory import gib
from trainer.failures import TrainingError
from trainer.preflight.model_facts import ModelFacts
from worker.launcher import OWN_GPU_SHARE


def check_heads(spec: JobSpec, config: Mapping[str, Any]) -> None:
    """Raises TrainingError (heads_not_divisible) where tensor parallel can't split the attention."""
    parts = spec.rollout.gpus_per_replica
    heads, keys = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if parts == 1 or not isinstance(heads, int):
        return
    keys = keys if isinstance(keys, int) else heads
    if heads % parts == 0 and (keys % parts == 0 or parts % keys == 0):
        return
    fitting = [n for n in range(1, 65) if heads % n == 0 and (keys % n == 0 or n % keys == 0)]
    raise TrainingError(
        "heads_not_divisible",
        f"{parts} GPUs of a replica can't share {heads} attention heads and {keys} key/value heads evenly",
        path="rollout.gpus_per_replica",
        remedy=f"set it to one of {', '.join(map(str, fitting))}",
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


def check_kinds(spec: JobSpec, gpu_names: Collection[str]) -> None:
    """Raises TrainingError (mixed_gpus) where ranks would get GPUs of several kinds."""
    kinds = sorted(set(gpu_names))
    if spec.resources.ranks > 1 and len(kinds) > 1:
        raise TrainingError(
            "mixed_gpus",
            f"the ranks would run on GPUs of several kinds ({', '.join(kinds)}), at the pace of the slowest",
            path="resources.gpu_type",
            remedy=f"name one of them, e.g. gpu_type: {kinds[0]}",
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
