"""Failures that people can act on, as the job's error."""

import importlib.util
from collections.abc import Collection, Iterable

from safetensors import SafetensorError

from powermean.artefacts import ArtefactError
from powermean.contracts.attempts import Finish, JobError
from powermean.contracts.training import OptimizerSpec
from powermean.disk import is_full
from powermean.errors import PowermeanError
from rollout.client import RolloutError


class TrainingError(PowermeanError):
    """Ends the attempt with a typed error; `retryable` says whether a new attempt may succeed."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        path: str | None = None,
        remedy: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message, code=code, path=path, remedy=remedy, retryable=retryable)


class CancelledError(Exception):
    """The supervisor ordered the attempt to stop without saving."""


def no_updates(steps: int) -> TrainingError:
    """The error of a run that ends with the weights it started from."""
    return TrainingError(
        "no_updates",
        f"no optimiser step was taken in {steps} steps: in every group all rewards were equal",
        path="data",
        remedy="choose problems that the model solves sometimes (the metric `reward` shows how often), "
        "or raise rollout.group_size",
    )


def cuda_unavailable() -> TrainingError:
    """The error of a job that asks for a GPU where PyTorch sees none."""
    return TrainingError(
        "cuda_unavailable",
        "the job asks for a GPU, but PyTorch sees no CUDA device on this node",
        path="resources.gpus",
        remedy="set resources.gpus to 0, or install the CUDA build of PyTorch and the driver on the node",
    )


def check_installed(optimizer: OptimizerSpec) -> None:
    """Raises TrainingError (torchao_missing) where what keeps the optimiser's state is not installed."""
    if optimizer.state == "8bit" and importlib.util.find_spec("torchao") is None:
        raise TrainingError(
            "torchao_missing",
            "optimizer.state 8bit needs torchao, which is not installed on this node",
            path="optimizer.state",
            remedy="install the extra on the node (pip install powermean[torchao]), or set it to float32",
        )


def check_modules(wanted: Iterable[str], known: Collection[str]) -> None:
    """Raises TrainingError (unknown_modules) where an adapter names layers that the model hasn't."""
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise unknown_modules(f"has no linear layers named {', '.join(unknown)}", known)


def unknown_modules(what: str, known: Collection[str]) -> TrainingError:
    """The error of an adapter for layers that the model hasn't; `known` are those that it has."""
    return TrainingError(
        "unknown_modules",
        f"the model {what}",
        path="model.lora.target_modules",
        remedy=f"choose among {', '.join(sorted(known))}; an empty list takes them all"
        if known
        else "train the whole model: leave out model.lora",
    )


def length_dependent(why: str) -> TrainingError:
    """The error of a model whose output for a row depends on how long the longest row of a call is."""
    return TrainingError(
        "length_dependent_model",
        f"the model's output for a row depends on the longest row beside it: {why}",
        path="rollout.max_new_tokens",
        remedy="keep prompts and completions below the length at which its positions change, or choose a "
        "model whose rotary scaling does not depend on the length (linear, llama3, yarn)",
    )


def is_out_of_memory(error: Exception) -> bool:
    """Whether memory ran out: Python's error, CUDA's, NCCL's, or that of PyTorch's CPU allocator."""
    kind, text = type(error).__name__, str(error)
    return (
        isinstance(error, MemoryError)
        or kind == "OutOfMemoryError"
        or (kind == "DistBackendError" and "out of memory" in text)
        or "can't allocate memory" in text
    )


def is_broken_call(error: Exception) -> bool:
    """Whether a call of torch among the ranks failed: NCCL's errors have a type, gloo's name its source."""
    typed = "DistError" in {kind.__name__ for kind in type(error).__mro__}
    return not is_out_of_memory(error) and (
        typed or (isinstance(error, RuntimeError) and "gloo/" in str(error))
    )


def sharded_out_of_memory(tokens: int) -> TrainingError:
    """The error of a rank without memory, in passes that all ranks take together and none can leave.

    Another attempt would measure the same number of tokens, and fail again.
    """
    return TrainingError(
        "out_of_memory",
        f"the trainer ran out of memory with micro-batches of {tokens} tokens",
        path="training.micro_batch_tokens",
        remedy=f"set training.micro_batch_tokens to {tokens // 2}, or training.gradient_checkpointing",
    )


def is_disk_full(error: Exception) -> bool:
    """Whether a disk is full: Python's error, or a library's version of it."""
    return is_full(error) or (
        isinstance(error, OSError | RuntimeError | SafetensorError) and "No space left" in str(error)
    )


def failed(error: Exception) -> Finish:
    """Turn an exception into a typed failure."""
    retryable = False
    match error:
        case TrainingError() | RolloutError() | ArtefactError():
            described, retryable = error.error, error.retryable
        case _ if is_out_of_memory(error):
            described = JobError(
                code="out_of_memory",
                message=f"the trainer ran out of memory: {error}",
                path="training.micro_batch_tokens",
                remedy="lower training.micro_batch_tokens, or set training.gradient_checkpointing",
            )
        case _ if is_disk_full(error):
            described = JobError(
                code="disk_full",
                message=f"a disk of the node is full: {error}",
                remedy="free space under POWERMEAN_DATA_DIR and /dev/shm on the node",
            )
            retryable = True  # others may have freed some by then
        case _:
            described = JobError(
                code="trainer_error",
                message=f"{type(error).__name__}: {error}"[:2000],
                remedy="the attempt's log has the traceback",
            )
    return Finish(outcome="failed", error=described, retryable=retryable)
