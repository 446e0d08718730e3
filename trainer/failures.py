"""Failures that people can act on: what goes wrong in a node's processes, as the job's error."""

from safetensors import SafetensorError

from powermean.contracts.attempts import JobError


class TrainingError(Exception):
    """Ends the attempt with a typed error; `retryable` says that a new attempt may well succeed."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        path: str | None = None,
        remedy: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.error = JobError(code=code, message=message, path=path, remedy=remedy)
        self.retryable = retryable


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's error, CUDA's, or the RuntimeError of PyTorch's CPU allocator."""
    kind = type(error).__name__
    return (
        isinstance(error, MemoryError) or kind == "OutOfMemoryError" or "can't allocate memory" in str(error)
    )


def is_disk_full(error: Exception) -> bool:
    """Whether a disk is full: Python's error, or one that a library made of it."""
    return isinstance(error, OSError | RuntimeError | SafetensorError) and "No space left" in str(error)
