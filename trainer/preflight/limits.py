"""Limits of this node that a job can exceed, judging by the model's folder: memory, names of layers."""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from powermean.contracts.job import JobSpec
from powermean.engine_selection import GPU_MEMORY_SHARE, choose, same_positions_up_to, text_config
from powermean.memory import engine_bytes, gib, total_bytes, weight_bytes
from trainer.failures import TrainingError, check_modules, length_dependent
from trainer.preflight.footprint import Footprint, footprint
from trainer.preflight.tensors import linear_shapes, tensor_shapes

ERROR = 1.15  # by which an estimate may be too high: only what is beyond that is refused


@dataclass(frozen=True)
class Place:
    """Where a job's trainer and engine run: bytes in all, and how many of them the engine takes."""

    cuda: bool
    total: int
    engine: int
    engine_name: str  # "" where it takes nothing here

    @property
    def for_trainer(self) -> int:
        return self.total - self.engine


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
        if total is None:
            return None
        shared = spec.resources.placement == "colocated" and _has_own_engine(spec)
        engine = choose(spec.rollout.engine, folder, on_gpu=True) if shared else ""
        taken = weight_bytes(folder, 2) if engine else 0
        if engine == "vllm":
            taken = int(GPU_MEMORY_SHARE * total)
        return Place(cuda=True, total=total, engine=taken, engine_name=engine)
    if (total := total_bytes()) is None:
        return None
    name = choose(spec.rollout.engine, folder, on_gpu=False) if _has_own_engine(spec) else ""
    if not name or (name == "transformers" and may_share_weights(spec)):
        return Place(cuda=False, total=total, engine=0, engine_name="")
    size = engine_bytes(name, folder, 2 if spec.model.dtype == "bfloat16" else 4)
    return Place(cuda=False, total=total, engine=size, engine_name=name)


def check_memory(spec: JobSpec, folder: Path, prompt_tokens: int, place: Place | None = None) -> None:
    """Raises TrainingError (not_enough_memory), naming what to change, where a job can't fit its place."""
    place = place or place_of(spec, folder)
    needed = footprint(spec, folder, prompt_tokens, cuda=place.cuda) if place is not None else None
    if place is None or needed is None or needed.total <= ERROR * place.for_trainer:
        return
    fitting = [
        change for change in changes(spec, folder, prompt_tokens, place) if fits(change.footprint, place)
    ]
    engine = f" beside the {place.engine_name} engine's {gib(place.engine)}" if place.engine_name else ""
    raise TrainingError(
        "not_enough_memory",
        f"the trainer needs about {gib(needed.total)} (micro-batches of {needed.tokens} tokens), the "
        f"{'GPU' if place.cuda else 'node'} has {gib(place.total)}{engine}",
        path=fitting[0].path if fitting else "model",
        remedy=f"with {fitting[0].text} it needs about {gib(fitting[0].footprint.total)}"
        if fitting
        else "take a smaller model or a larger node",
    )


def fits(needed: Footprint, place: Place) -> bool:
    """Whether the estimate, as it is, fits."""
    return needed.total <= place.for_trainer


def changes(spec: JobSpec, folder: Path, prompt_tokens: int, place: Place) -> Iterator[Change]:
    """What may make the job smaller, each with what it comes to; what the spec has already is left out."""
    shortest = prompt_tokens + spec.rollout.max_new_tokens
    small, again = f"training.micro_batch_tokens: {shortest}", "training.gradient_checkpointing: true"
    tokens, checkpointing = {"micro_batch_tokens": shortest}, {"gradient_checkpointing": True}
    given: list[tuple[str, dict[str, dict[str, Any]]]] = [
        (small, {"training": tokens}),
        (again, {"training": checkpointing}),
        (f"{again}, {small}", {"training": checkpointing | tokens}),
    ]
    if spec.model.lora is None:
        given.append(("model.lora: {}", {"model": {"lora": {}}}))
    now = footprint(spec, folder, prompt_tokens, cuda=place.cuda)
    for text, fields in given:
        data = spec.model_dump()
        for room, values in fields.items():
            data[room] |= values
        try:
            changed = JobSpec.model_validate(data)
        except ValidationError:  # an adapter where the spec has something that works with whole weights alone
            continue
        found = footprint(changed, folder, prompt_tokens, cuda=place.cuda)
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
