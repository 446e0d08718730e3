"""What a fork begins with: a model's folder, and its adapter where it goes on with one.

All files come from the artefact store, verified. A final model is a Hugging Face folder already; a
checkpoint's weights go into the model that the line of jobs began with, whose config and tokenizer it has.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import Claim
from powermean.contracts.forks import Origin
from trainer.forks.folders import model_with
from trainer.learner.checkpoint import fetch_folder
from trainer.models.resolve import resolve_model
from worker.settings import NodeSettings

Fetch = Callable[[Origin, Path], None]  # its files, into an empty folder


@dataclass(frozen=True)
class Start:
    """Where a job's training begins."""

    folder: Path  # the model's, or the one that the adapter is over
    name: str  # of that model, for what names it
    adapter: Path | None = None  # a checkpoint's folder


def start_of(claim: Claim, store: ArtefactStore, settings: NodeSettings, into: Path) -> Start:
    """The claim's; what has to be fetched for it is kept in `into` for the attempt's other programs.

    Raises TrainingError: those of resolve_model, or checkpoint_unusable; and a retryable ArtefactError.
    """
    origin = claim.origin
    given = claim.spec.model if origin is None else origin.first_model

    def first() -> Path:
        return resolve_model(given, settings.data_dir, settings.model_roots, settings.allowed_models)

    if origin is None:
        return Start(first(), given.source)

    def fetch(part: Origin, folder: Path) -> None:
        fetch_folder(store, part.files, folder)

    folder = model_folder(origin, first, fetch, into)
    name = given.source if origin.over_first_model else claim.spec.model.source
    if origin.kind != "adapter":
        return Start(folder, name)
    return Start(folder, name, _once(into / "adapter", lambda part: fetch(origin, part)))


def model_folder(origin: Origin, first: Callable[[], Path], fetch: Fetch, into: Path) -> Path:
    """The Hugging Face folder of an origin; of an adapter's, that of the model below it."""
    if origin.kind == "adapter":
        return first() if origin.base is None else model_folder(origin.base, first, fetch, into)

    def make(folder: Path) -> None:
        if origin.kind == "model":
            fetch(origin, folder)
            return
        checkpoint = into / "checkpoint"
        _fresh(checkpoint)
        fetch(origin, checkpoint)
        model_with(checkpoint, first(), folder)
        shutil.rmtree(checkpoint)

    return _once(into / "model", make)


def _once(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder, made under another name first: if it is there, it is complete."""
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.part")
        _fresh(part)
        make(part)
        part.rename(folder)
    return folder


def _fresh(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
