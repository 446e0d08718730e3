"""Sizes that the trainer works in, and what `auto` in a spec's training comes to.

Needs no PyTorch: a job's memory is estimated from it too.
"""

from powermean.contracts.training import TrainingSpec

CPU_TOKENS = 1024  # of a micro-batch on a CPU: beyond, updates get no faster, only larger (docs/log.md)
LEAST_GPU_TOKENS = 1024  # on a GPU, however little of its memory is free
DENSE_UP_TO = 256  # nodes of a tree: from here on a CPU gathers chains, as a mask costs more (docs/log.md)
# Of AdamW's two moments of a weight, by optimizer.state. In 8 bits each block of 256 has a scale of its own.
MOMENT_BYTES = {"float32": 8.0, "8bit": 2 * (1 + 4 / 256)}
CPU_TILE_BYTES = 64 << 20  # of logits at a time
CUDA_TILE_BYTES = 512 << 20
COMPILED_UPDATES = 100  # from here on, compiled layers pay on a GPU (docs/log.md)


def compiles(training: TrainingSpec, *, cuda: bool) -> bool:
    """Whether layers are compiled, or at least tried to be."""
    if training.compile == "auto":
        return cuda and training.steps * training.epochs * training.minibatches >= COMPILED_UPDATES
    return training.compile == "on"
