"""From a job's data spec to its prompt source."""

from pathlib import Path

from powermean.contracts.data import ArithmeticSource, DataSpec
from trainer.data.arithmetic import Arithmetic
from trainer.data.jsonl import Jsonl
from trainer.data.problem import PromptSource
from trainer.failures import TrainingError


def open_source(spec: DataSpec, dataset: Path | None) -> PromptSource:
    """The prompt source of a job; `dataset` is the local copy of an uploaded file.

    Raises TrainingError with the field at fault; all lines of the file are checked here.
    """
    if isinstance(spec, ArithmeticSource):
        return Arithmetic(spec)
    if dataset is None:
        raise TrainingError(
            "dataset_missing",
            f"dataset {spec.dataset!r} did not reach this node",
            path="data.dataset",
            remedy="upload it again and submit the job with the new id",
        )
    return Jsonl(spec, dataset)
