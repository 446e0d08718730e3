"""Limits of this node that a job can exceed, judging by the model's folder: memory, names of layers."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from powermean.contracts.job import JobSpec
from powermean.engine_selection import choose
from powermean.memory import engine_bytes, gib, total_bytes, weight_bytes
from trainer.failures import TrainingError

_FULL = 4  # a float32 number's weight, gradient and AdamW's two moments
_NO_LAYERS = frozenset({"embed_tokens", "lm_head", "wte", "wpe", "shared"})  # matrices without adapters


def check_memory(spec: JobSpec, folder: Path) -> None:
    """Raises TrainingError (not_enough_memory) if a CPU job can't fit the node, even if it is idle."""
    total = total_bytes()
    if spec.resources.gpus or total is None:
        return
    trainer = trainer_bytes(spec, folder)
    parts = [f"{gib(trainer)} for the trainer"]
    needed = trainer
    if spec.model.lora is None or spec.rollout.sharing == "own":  # otherwise the engine may be elsewhere
        engine = choose(spec.rollout.engine, folder, on_gpu=False)
        size = engine_bytes(engine, folder, 2 if spec.model.dtype == "bfloat16" else 4)
        parts.append(f"{gib(size)} for the {engine} engine")
        needed += size
    if needed > total:
        raise TrainingError(
            "not_enough_memory",
            f"the job needs at least {gib(needed)} of memory ({', '.join(parts)}), the node has {gib(total)}",
            path="model",
            remedy="use a smaller model or a larger node"
            + ("" if spec.model.lora else ", or train an adapter (model.lora)"),
        )


def trainer_bytes(spec: JobSpec, folder: Path) -> int:
    """The least memory for training in float32: weights, gradients, AdamW's moments, no activations."""
    weights = weight_bytes(folder, 4)
    reference = 1 if spec.algorithm.beta > 0 else 0
    return weights * ((_FULL if spec.model.lora is None else 1) + reference)


def check_modules(spec: JobSpec, folder: Path) -> None:
    """Raises TrainingError (unknown_modules) if the adapter names layers that the model lacks."""
    lora = spec.model.lora
    if lora is None or not lora.target_modules:
        return
    known = layer_names(folder)
    unknown = sorted(set(lora.target_modules) - known)
    if unknown and known:
        raise TrainingError(
            "unknown_modules",
            f"the model has no linear layers named {', '.join(unknown)}",
            path="model.lora.target_modules",
            remedy=f"choose from {', '.join(sorted(known))}; an empty list takes them all",
        )


def layer_names(folder: Path) -> frozenset[str]:
    """Last names of layers with a weight matrix, except the output layer; empty if nothing is readable.

    Some may not be linear; peft reports layers that it can't adapt when training starts.
    """
    found = set()
    try:
        for path in sorted(folder.glob("*.safetensors")):
            with safe_open(path, framework="np") as tensors:
                for name in tensors.keys():  # noqa: SIM118  (not a dictionary)
                    layer, _, kind = name.rpartition(".")
                    if kind == "weight" and len(tensors.get_slice(name).get_shape()) == 2:
                        found.add(layer.rpartition(".")[2])
    except (OSError, SafetensorError):
        return frozenset()  # the trainer reports the problem when it loads the model
    return frozenset(found) - _NO_LAYERS
