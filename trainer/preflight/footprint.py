"""What one rank of a job's trainer takes at its peak, from the spec and the model's folder: no PyTorch.

An estimate, within 15 % of what was measured (docs/hardware.md, `python benchmarks/memory.py`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil

from powermean.contracts.job import JobSpec
from trainer.defaults import (
    CPU_TILE_BYTES,
    CPU_TOKENS,
    CUDA_TILE_BYTES,
    DENSE_UP_TO,
    LEAST_GPU_TOKENS,
    MOMENT_BYTES,
    compiles,
)
from trainer.preflight.kept_per_layer import Precision, Shape
from trainer.preflight.layout import Layout, by_layer, layout_of
from trainer.preflight.model_facts import ModelFacts
from trainer.preflight.tensors import linear_shapes

_PROCESS = 600 << 20  # of a CPU's trainer before it has a model: Python, PyTorch, transformers


@dataclass(frozen=True)
class Footprint:
    """Bytes of a rank at the peak of an update, by what they are for, and what they are for.

    `gathered`: of layers whose parts FSDP2 has brought together for a pass. `tokens`: of the micro-batch.
    """

    weights: int
    gradients: int
    moments: int
    gathered: int
    activations: int
    output_layer: int
    process: int
    tokens: int
    layout: Layout

    @property
    def total(self) -> int:
        passing = self.gradients + self.gathered + self.activations + self.output_layer
        return self.resident + passing

    @property
    def resident(self) -> int:
        """What is there between updates too, while the engine samples."""
        return self.weights + self.moments + self.process


def footprint(
    spec: JobSpec, model: ModelFacts, prompt_tokens: int, *, cuda: bool, room: int | None = None
) -> Footprint | None:
    """The peak of a rank where the longest prompt has so many tokens; None where the config doesn't tell.

    For `micro_batch_tokens: auto` on CUDA it is that of the least it takes: auto fills what is free. For
    `parallel: auto` the `room` of a rank decides (None: there is enough).
    """
    shape, shapes = Shape.of(model.config, model.shapes), model.shapes
    if shape is None:
        return None
    numbers = model.numbers
    trained = _trained(spec, shapes, numbers)
    layout = layout_of(spec, numbers, trained, room)
    precision = precision_of(spec, cuda=cuda, sharded=layout.shards > 1)
    tokens, alone = micro_batch(spec, prompt_tokens, cuda=cuda, ranks=layout.ranks)
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
    activations, gradients = int(tokens * kept_of_all), 4 * trained // layout.shards
    matrix = shape.vocabulary * shape.hidden
    tile = min(CUDA_TILE_BYTES if cuda else CPU_TILE_BYTES, tokens * shape.vocabulary * size)
    return Footprint(
        weights=_held(spec, precision, numbers, trained, layout),
        # Those of a lone micro-batch come as its activations go.
        gradients=max(0, gradients - activations) if alone else gradients,
        moments=int(MOMENT_BYTES[spec.optimizer.state] * trained) // layout.shards,
        gathered=_gathered(layout, size, shapes, trained / numbers),
        activations=activations,
        output_layer=(2 if cuda else 3) * tile + (4 if precision == "float32" else 6) * matrix,
        process=0 if cuda else _PROCESS,
        tokens=tokens,
        layout=layout,
    )


def precision_of(spec: JobSpec, *, cuda: bool, sharded: bool = False) -> Precision:
    """What the trainer's passes run in. FSDP2 gathers shards in bfloat16: there is nothing left to cast."""
    if spec.model.dtype == "float32" or (spec.model.dtype == "auto" and not cuda):
        return "float32"
    return "bfloat16" if sharded or spec.training.weights == "bfloat16" else "autocast"


def micro_batch(spec: JobSpec, prompt_tokens: int, *, cuda: bool, ranks: int = 1) -> tuple[int, bool]:
    """Tokens of the largest micro-batch of a rank, and whether it is an update's only one.

    A group's completions are taken to share nothing but the prompt, and to be as long as they may.
    """
    row = prompt_tokens + spec.rollout.max_new_tokens
    size = spec.rollout.group_size
    groups = spec.training.prompts_per_step // spec.training.minibatches
    share = ceil(groups * size / ranks)  # trajectories
    most = spec.training.micro_batch_tokens
    if most == "auto":
        most = LEAST_GPU_TOKENS if cuda else CPU_TOKENS
    together = min(share, (spec.training.micro_batch_groups or groups) * size)
    tokens = max(row, min(most, _tokens(together, spec, prompt_tokens)))
    return tokens, tokens >= _tokens(share, spec, prompt_tokens)


def _tokens(trajectories: int, spec: JobSpec, prompt_tokens: int) -> int:
    """Of so many trajectories, whole groups as far as may be."""
    prompts = ceil(trajectories / spec.rollout.group_size)
    return prompts * prompt_tokens + trajectories * spec.rollout.max_new_tokens


def _gathered(layout: Layout, size: int, shapes: Mapping[str, tuple[int, ...]], trained: float) -> int:
    """Bytes of whole layers on a rank, in the backward pass of FSDP2.

    The embeddings and the output layer are there for the whole pass, and two layers: one at work, and the
    next one on its way. The former has whole gradients, which are reduced in float32.
    """
    if layout.shards == 1:
        return 0
    layer, outside = by_layer(shapes)
    return int(size * (outside + 2 * layer) + (size + 4) * layer * trained)


def _gathered_keys(spec: JobSpec, prompt_tokens: int) -> float:
    """Keys a token that attention gathers for the chains of a group: its prompt's, and its completions'."""
    rollout = spec.rollout
    completions = rollout.group_size * (prompt_tokens + rollout.max_new_tokens)
    return (prompt_tokens + completions) / (prompt_tokens + rollout.group_size * rollout.max_new_tokens)


def _held(spec: JobSpec, precision: Precision, numbers: int, trained: int, layout: Layout) -> int:
    """Bytes of the weights in all their copies, and of the initial model."""
    reference = 4 * numbers if spec.algorithm.beta > 0 else 0
    if layout.shards > 1:  # of a rank's parts, all in float32; what passes run on is gathered
        return (4 * numbers + reference) // layout.shards
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
