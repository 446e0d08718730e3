"""What a job may not exceed on this node, as far as the model's folder tells: memory, and names of layers."""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from powermean.contracts.job import JobSpec
from powermean.engine_selection import choose
from powermean.memory import engine_bytes, gib, total_bytes, weight_bytes
from trainer.failures import TrainingError, check_modules

_FULL = 4  # a float32 number's weight, gradient and AdamW's two moments
_NO_LAYERS = frozenset({"embed_tokens", "lm_head", "wte", "wpe", "shared"})  # have matrices, take no adapter


def check_memory(spec: JobSpec, folder: Path) -> None:
    """Raises TrainingError (not_enough_memory) where a CPU job can't fit the node, whatever else it runs."""
    total = total_bytes()
    if spec.resources.gpus or total is None:
        return
    trainer = trainer_bytes(spec, folder)
    parts = [f"{gib(trainer)} for the trainer"]
    needed = trainer
    if spec.model.lora is None or spec.rollout.sharing == "own":  # else the engine may be elsewhere
        engine = choose(spec.rollout.engine, folder, on_gpu=False)
        if engine != "transformers" or not may_share_weights(spec):
            size = engine_bytes(engine, folder, 2 if spec.model.dtype == "bfloat16" else 4)
            parts.append(f"{gib(size)} for the {engine} engine")
            needed += size
    if needed > total:
        raise TrainingError(
            "not_enough_memory",
            f"the job needs at least {gib(needed)} of memory ({', '.join(parts)}), the node has {gib(total)}",
            path="model",
            remedy="take a smaller model or a larger node"
            + ("" if spec.model.lora else ", or train an adapter (model.lora)"),
        )


def may_share_weights(spec: JobSpec) -> bool:
    """Whether a transformers engine may come to sample from the trainer's own weights."""
    return spec.rollout.publish in ("auto", "in_place") and spec.in_place_objection is None


def trainer_bytes(spec: JobSpec, folder: Path) -> int:
    """The least that training takes, in float32: weights, gradients, AdamW's moments, no activations."""
    weights = weight_bytes(folder, 4)
    reference = 1 if spec.algorithm.beta > 0 else 0
    return weights * ((_FULL if spec.model.lora is None else 1) + reference)


def check_adapter(spec: JobSpec, folder: Path) -> None:
    """Raises TrainingError (unknown_modules) where the adapter names layers that the model hasn't."""
    lora = spec.model.lora
    if lora is not None and lora.target_modules and (known := layer_names(folder)):
        check_modules(lora.target_modules, known)


def layer_names(folder: Path) -> frozenset[str]:
    """Last names of layers with a matrix of weights, the output layer left out; empty where none is readable.

    Some of them may not be linear: what peft can't adapt is an error when training starts.
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
        return frozenset()  # the trainer that loads the model says what is wrong with it
    return frozenset(found) - _NO_LAYERS
