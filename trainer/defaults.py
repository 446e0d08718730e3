"""What `auto` in a spec's training comes to. Needs no PyTorch: jobs are checked by it too."""

from powermean.contracts.job import TrainingSpec

CPU_TOKENS = 2048  # of a micro-batch on a CPU: beyond, updates get no faster (docs/log.md)
LEAST_GPU_TOKENS = 1024  # on a GPU, however little of its memory is free
COMPILED_UPDATES = 100  # from here on, compiled layers pay on a GPU (docs/log.md)


def compiles(training: TrainingSpec, *, cuda: bool) -> bool:
    """Whether layers are compiled, or at least tried to be."""
    if training.compile == "auto":
        return cuda and training.steps * training.epochs * training.minibatches >= COMPILED_UPDATES
    return training.compile == "on"
