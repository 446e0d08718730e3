"""What the trainer of a job takes at its peak, from the spec and the model's folder: no PyTorch.

An estimate, within 15 % of what was measured (docs/hardware.md, `python benchmarks/memory.py`), except for an
adapter on a CPU, which takes half as much again (docs/log.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from powermean.contracts.job import JobSpec
from powermean.engine_selection import text_config
from trainer.defaults import (
    CPU_TILE_BYTES,
    CPU_TOKENS,
    CUDA_TILE_BYTES,
    DENSE_UP_TO,
    LEAST_GPU_TOKENS,
    compiles,
)
from trainer.preflight.kept_per_layer import Precision, Shape
from trainer.preflight.tensors import linear_shapes, tensor_shapes

_PROCESS = 600 << 20  # of a CPU's trainer before it has a model: Python, PyTorch, transformers


@dataclass(frozen=True)
class Footprint:
    """Bytes at the peak of an update, by what they are for, and the micro-batch that they are for."""

    weights: int
    gradients: int
    moments: int
    activations: int
    output_layer: int
    process: int
    tokens: int

    @property
    def total(self) -> int:
        parts = (self.weights, self.gradients, self.moments)
        return sum(parts) + self.activations + self.output_layer + self.process


def footprint(spec: JobSpec, folder: Path, prompt_tokens: int, *, cuda: bool) -> Footprint | None:
    """The trainer's peak where the longest prompt has so many tokens; None where the config doesn't tell.

    For `micro_batch_tokens: auto` on CUDA it is that of the least it takes: auto fills what is free.
    """
    return footprint_of(spec, text_config(folder), tensor_shapes(folder), prompt_tokens, cuda=cuda)


def footprint_of(
    spec: JobSpec,
    config: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    prompt_tokens: int,
    *,
    cuda: bool,
) -> Footprint | None:
    """The same from a model's config and the shapes of its weights by name."""
    shape = Shape.of(config, shapes)
    if shape is None:
        return None
    precision = precision_of(spec, cuda=cuda)
    numbers = sum(map(prod, shapes.values()))
    trained = _trained(spec, shapes, numbers)
    tokens, alone = micro_batch(spec, prompt_tokens, cuda=cuda)
    paths = None
    if not cuda and tokens > DENSE_UP_TO:
        paths = _gathered_keys(spec, prompt_tokens)
    kept = shape.kept(precision, compiled=compiles(spec.training, cuda=cuda), paths=paths)
    size = 4 if precision == "float32" else 2
    if spec.training.gradient_checkpointing:
        kept_of_all = kept + shape.layers * (2 if precision == "bfloat16" else 4) * shape.hidden
    else:
        kept_of_all = shape.layers * kept
    # Beside what the layers keep: embedding, last norm and the output layer's input; a layer's way back.
    kept_of_all += 24 * shape.hidden + 4 * size * (shape.hidden + shape.mlp)
    activations, gradients = int(tokens * kept_of_all), 4 * trained
    matrix = shape.vocabulary * shape.hidden
    tile = min(CUDA_TILE_BYTES if cuda else CPU_TILE_BYTES, tokens * shape.vocabulary * size)
    return Footprint(
        weights=_held(spec, precision, numbers, trained),
        # Those of a lone micro-batch come as its activations go.
        gradients=max(0, gradients - activations) if alone else gradients,
        moments=8 * trained,
        activations=activations,
        output_layer=(2 if cuda else 3) * tile + (4 if precision == "float32" else 6) * matrix,
        process=0 if cuda else _PROCESS,
        tokens=tokens,
    )


def precision_of(spec: JobSpec, *, cuda: bool) -> Precision:
    """What the trainer's passes run in."""
    if spec.model.dtype == "float32" or (spec.model.dtype == "auto" and not cuda):
        return "float32"
    return "bfloat16" if spec.training.weights == "bfloat16" else "autocast"


def micro_batch(spec: JobSpec, prompt_tokens: int, *, cuda: bool) -> tuple[int, bool]:
    """Tokens of the largest micro-batch, and whether it is an update's only one.

    A group's completions are taken to share nothing but the prompt, and to be as long as they may.
    """
    row = prompt_tokens + spec.rollout.max_new_tokens
    group = prompt_tokens + spec.rollout.group_size * spec.rollout.max_new_tokens
    groups = spec.training.prompts_per_step // spec.training.minibatches
    most = spec.training.micro_batch_tokens
    if most == "auto":
        most = LEAST_GPU_TOKENS if cuda else CPU_TOKENS
    together = min(groups, spec.training.micro_batch_groups or groups) * group
    tokens = max(row, min(most, together))
    return tokens, tokens >= groups * group


def _gathered_keys(spec: JobSpec, prompt_tokens: int) -> float:
    """Keys a token that attention gathers for the chains of a group: its prompt's, and its completions'."""
    rollout = spec.rollout
    completions = rollout.group_size * (prompt_tokens + rollout.max_new_tokens)
    return (prompt_tokens + completions) / (prompt_tokens + rollout.group_size * rollout.max_new_tokens)


def _held(spec: JobSpec, precision: Precision, numbers: int, trained: int) -> int:
    """Bytes of the weights in all their copies, and of the initial model."""
    reference = 4 * numbers if spec.algorithm.beta > 0 else 0
    if precision == "bfloat16":
        return 2 * numbers + 4 * trained + reference
    return (6 if precision == "autocast" else 4) * numbers + reference  # autocast keeps what it has cast


def _trained(spec: JobSpec, shapes: Mapping[str, tuple[int, ...]], numbers: int) -> int:
    """Numbers that are trained."""
    lora = spec.model.lora
    if lora is None:
        return numbers
    linear = linear_shapes(shapes)
    return sum(
        lora.rank * sum(shape) for name in lora.target_modules or linear for shape in linear.get(name, ())
    )
