"""Whether the disks have room for what a run has to write: a checkpoint on its way, and the final model."""

from collections.abc import Iterator
from pathlib import Path

from powermean.artefacts import ArtefactStore
from powermean.contracts.job import JobSpec
from powermean.disk import free_bytes
from powermean.memory import gib, weight_bytes
from trainer.failures import TrainingError
from worker.settings import NodeSettings

MASTER = 4  # bytes of a number in a checkpoint: weights and moments are float32
COPIES = 3  # of the weights in it: themselves, and AdamW's two moments


def check_disk(spec: JobSpec, folder: Path, settings: NodeSettings) -> None:
    """Raises TrainingError (not_enough_disk) for a disk on which a run must fail unless somebody makes room.

    All sizes are lower bounds: of the checkpoints that are kept one counts, and an adapter's counts nothing.
    """
    for place, needed in needs(spec, folder, settings):
        free = free_bytes(place)
        if free < needed:
            raise TrainingError(
                "not_enough_disk",
                f"the job has to write at least {gib(needed)} to {place}, whose disk has {gib(free)} left",
                path="model",
                remedy="make room there, or take a smaller model"
                + ("" if spec.model.lora else " or an adapter (model.lora)"),
            )


def needs(spec: JobSpec, folder: Path, settings: NodeSettings) -> Iterator[tuple[Path, int]]:
    """Folders, and the bytes that have to fit on their disks at one time."""
    half = spec.model.dtype == "bfloat16" or (spec.model.dtype == "auto" and spec.resources.gpus > 0)
    model = weight_bytes(folder, 2 if half else 4)
    saves = spec.training.steps > spec.checkpoints.every
    checkpoint = COPIES * weight_bytes(folder, MASTER) if saves and spec.model.lora is None else 0
    yield settings.data_dir, max(model, checkpoint)  # written here first, one at a time
    if (store := ArtefactStore(settings.artefacts_url).folder) is not None:
        yield store, model + checkpoint
