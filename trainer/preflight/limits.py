"""Limits of this node that a job can exceed, judging by the model's folder: memory, names of layers."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from powermean.contracts.job import JobSpec
from powermean.engine_selection import (
    GPU_MEMORY_SHARE,
    EngineName,
    choose,
    same_positions_up_to,
    text_config,
)
from powermean.memory import engine_bytes, gib, total_bytes, weight_bytes
from trainer.failures import TrainingError, check_modules, length_dependent
from trainer.preflight.footprint import Footprint, footprint
from trainer.preflight.model_facts import ModelFacts
from trainer.preflight.tensors import linear_shapes, tensor_shapes

ERROR = 1.15  # by which an estimate may be too high: only what is beyond that is refused
ASLEEP_BYTES = 2 << 30  # of a vLLM that sleeps: its CUDA context and graphs; not measured


@dataclass(frozen=True)
class Place:
    """Where a rank and an engine run: bytes of the GPU or node, and how many of them the engine takes."""

    cuda: bool
    total: int
    engine: int
    engine_name: str  # "" where it takes nothing here
    sleeps: bool = False  # the engine gives its memory back for the time of an update

    @property
    def for_trainer(self) -> int:
        """At the peak of an update."""
        return self.total - (min(self.engine, ASLEEP_BYTES) if self.sleeps else self.engine)


@dataclass(frozen=True)
class Change:
    """A change of the spec, and the trainer's footprint with it."""

    path: str
    text: str  # as in a spec's YAML
    footprint: Footprint


def place_of(spec: JobSpec, folder: Path, gpu_bytes: int | None = None) -> Place | None:
    """Where the job would run; `gpu_bytes` of a GPU other than the node's. None where nothing says."""
    if spec.resources.gpus:
        total = gpu_bytes or gpu_bytes_of_node()
        engine = choose(spec.rollout.engine, folder, on_gpu=True)
        return None if total is None else gpu_place(spec, total, engine, weight_bytes(folder, 2))
    if (total := total_bytes()) is None:
        return None
    name = choose(spec.rollout.engine, folder, on_gpu=False) if _has_own_engine(spec) else ""
    local = spec.resources.ranks_per_node  # which share the node's memory
    if not name or (name == "transformers" and may_share_weights(spec)):
        return Place(cuda=False, total=total // local, engine=0, engine_name="")
    size = engine_bytes(name, folder, 2 if spec.model.dtype == "bfloat16" else 4)
    return Place(cuda=False, total=total // local, engine=size // local, engine_name=name)


def gpu_place(spec: JobSpec, total: int, engine: EngineName, weights: int) -> Place:
    """A GPU of so many bytes, with the engine that would share it with the trainer."""
    if spec.resources.placement == "split" or not _has_own_engine(spec):
        return Place(cuda=True, total=total, engine=0, engine_name="")
    if engine == "vllm":
        taken = int(GPU_MEMORY_SHARE * total)
        return Place(cuda=True, total=total, engine=taken, engine_name=engine, sleeps=spec.engine_sleeps)
    return Place(cuda=True, total=total, engine=weights, engine_name=engine)


def check_memory(spec: JobSpec, model: ModelFacts, prompt_tokens: int, place: Place | None) -> None:
    """Raises TrainingError (not_enough_memory), naming what to change, where a job can't fit its place."""
    if place is None:
        return
    needed = footprint(spec, model, prompt_tokens, cuda=place.cuda, room=place.for_trainer)
    if needed is None or shortage(needed, place) <= ERROR:
        return
    fitting = [
        change for change in changes(spec, model, prompt_tokens, place) if fits(change.footprint, place)
    ]
    engine = f" beside the {place.engine_name} engine's {gib(place.engine)}" if place.engine_name else ""
    each = " for each" if spec.resources.cpu_ranks > 1 else ""
    who = "the trainer needs" if spec.resources.ranks == 1 else f"{needed.layout.words}, each needs"
    raise TrainingError(
        "not_enough_memory",
        f"{who} about {gib(needed.total)} (micro-batches of {needed.tokens} tokens), the "
        f"{'GPU' if place.cuda else 'node'} has {gib(place.total)}{each}{engine}",
        path=fitting[0].path if fitting else "model",
        remedy=f"with {fitting[0].text} it needs about {gib(fitting[0].footprint.total)}"
        if fitting
        else f"take a smaller model, {'more or larger GPUs' if place.cuda else 'or a larger node'}",
    )


def host_bytes(model: ModelFacts) -> int:
    """Of the float32 model that is read on its way to a GPU."""
    return 4 * model.numbers


def check_host_memory(model: ModelFacts, total: int | None) -> None:
    """Raises TrainingError (not_enough_memory) where a host of `total` bytes can't hold the float32 model on
    its way to the GPUs. Ranks that hold whole models load them in turns if need be: one copy must fit."""
    needed = host_bytes(model)
    if total is not None and needed > total:
        raise TrainingError(
            "not_enough_memory",
            f"the model takes {gib(needed)} of the host's memory while it loads, the node has {gib(total)}",
            path="model",
            remedy="take a smaller model, or a node with more memory",
        )


def shortage(needed: Footprint, place: Place) -> float:
    """What is needed over what there is: in an update, and while an engine that sleeps in it is awake."""
    peak = needed.total / max(1, place.for_trainer)
    return max(peak, needed.resident / max(1, place.total - place.engine)) if place.sleeps else peak


def fits(needed: Footprint, place: Place) -> bool:
    """Whether the estimate, as it is, fits."""
    return shortage(needed, place) <= 1


def changes(spec: JobSpec, model: ModelFacts, prompt_tokens: int, place: Place) -> Iterator[Change]:
    """What may make the job smaller, each with what it comes to; what the spec has already is left out."""
    shortest = prompt_tokens + spec.rollout.max_new_tokens
    small, again = f"training.micro_batch_tokens: {shortest}", "training.gradient_checkpointing: true"
    tokens, checkpointing = {"micro_batch_tokens": shortest}, {"gradient_checkpointing": True}
    given: list[tuple[str, dict[str, dict[str, Any]]]] = [
        (small, {"training": tokens}),
        (again, {"training": checkpointing}),
        (f"{again}, {small}", {"training": checkpointing | tokens}),
    ]
    if spec.resources.ranks > 1:
        given.append(("training.parallel: shard", {"training": {"parallel": "shard"}}))
    if spec.model.lora is None:
        given.append(("optimizer.state: 8bit", {"optimizer": {"state": "8bit"}}))
        given.append(("model.lora: {}", {"model": {"lora": {}}}))
    room = place.for_trainer
    now = footprint(spec, model, prompt_tokens, cuda=place.cuda, room=room)
    for text, fields in given:
        data = spec.model_dump()
        for part, values in fields.items():
            data[part] |= values
        try:
            changed = JobSpec.model_validate(data)
        except ValidationError:  # an adapter where the spec has something that works with whole weights alone
            continue
        found = footprint(changed, model, prompt_tokens, cuda=place.cuda, room=room)
        if now is not None and found is not None and found.total < now.total:
            yield Change(text.partition(":")[0], text, found)


def may_share_weights(spec: JobSpec) -> bool:
    """Whether a transformers engine may come to sample from the trainer's own weights."""
    return spec.rollout.publish in ("auto", "in_place") and spec.in_place_objection is None


def check_adapter(spec: JobSpec, folder: Path) -> None:
    """Raises TrainingError (unknown_modules, unknown_model) where the model can't take the adapter."""
    lora = spec.model.lora
    if lora is None:
        return
    if lora.target_modules and (known := linear_shapes(tensor_shapes(folder))):
        check_modules(lora.target_modules, known.keys())
    # Imported here on purpose: it takes PyTorch, transformers and peft, which other jobs are checked without.
    importlib.import_module("trainer.preflight.adapter_trial").try_adapter(folder, lora)


def check_positions(folder: Path, tokens: int) -> None:
    """Raises TrainingError (length_dependent_model) where positions of a row of so many tokens are encoded
    otherwise than those of a short row."""
    limit = same_positions_up_to(text_config(folder))
    if limit is not None and tokens - 1 > limit:  # the last token is never an input
        raise length_dependent(
            f"its positions change beyond {limit} tokens; prompt and completion may have {tokens}"
        )


def _has_own_engine(spec: JobSpec) -> bool:
    """Not where the engine may be one that the administrator declared, elsewhere."""
    return spec.model.lora is None or spec.rollout.sharing == "own"


def gpu_bytes_of_node() -> int | None:
    """Memory of this node's first GPU, if it has one."""
    # Imported here on purpose: PyTorch takes seconds to import, and CPU jobs need it for no check.
    torch = importlib.import_module("torch")
    return int(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
