"""Checkpoints: all that a run needs to go on as if nothing had happened, in safetensors and JSON, hashed.

model.safetensors      the weights that are trained (all, or the adapter's), float32
optimizer.safetensors  AdamW's moments and step counts, by number of the weight
random.safetensors     states of torch's random number generators
state.json             how far the run is, and the random states of Python and NumPy

Of a sharded model each rank writes its rows, as model.2-of-4.safetensors, in the form in which
torch.distributed.checkpoint keeps parts of tensors; it also reads them, whatever rows a rank has then. Each
rank has a random.2-of-4.safetensors of its own. What decides the next step (prompts, seeds, minibatches) is a
function of the job's seed and the step, so `step` is the data cursor too.
"""

import json
import random
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import Manifest
from trainer.failures import TrainingError
from trainer.learner.lora import trained_state
from trainer.learner.model_state import unique_weights
from trainer.ranks.sharding import rows_held_by
from trainer.ranks.world import World

FORMAT, FORMAT_OF_RANKS = 1, 2


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    step: int = 0  # steps finished
    updates: int = 0  # optimiser steps taken
    tokens: int = 0  # completion tokens sampled in training
    reward_before: float | None = None
    reward_after: float | None = None  # of the newest evaluation
    streak: int = 0  # values in a row that kept to limits.stop_when

    def advanced(self, **changes: object) -> "Progress":
        return replace(self, **changes)  # type: ignore[arg-type]


def save(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    masters: Mapping[str, Tensor] = MappingProxyType({}),
    world: World = World(),
) -> None:
    """Write this rank's part of a checkpoint into a folder. `masters`: of a model in bfloat16, by name."""
    parts = rows_held_by(model)
    if world.rank < parts:  # others have copies of the same
        weights = unique_weights(trained_state(model))
        held = {name: masters.get(name, weight) for name, weight in weights}
        _write(held, folder / file_name("model", world.rank, parts))
        _write(_optimizer_tensors(optimizer, world), folder / file_name("optimizer", world.rank, parts))
    save_file(_random_tensors(), folder / file_name("random", world.rank, world.size))
    if not world.leads:
        return
    state = {
        "format": FORMAT if world.size == 1 else FORMAT_OF_RANKS,
        "ranks": world.size,
        "parts": parts,
        "progress": asdict(progress),
        "python_random": random.getstate(),
        "numpy_random": _numpy_state(),
    }
    (folder / "state.json").write_text(json.dumps(state))


def load(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, Tensor] = MappingProxyType({}),
    world: World = World(),
) -> Progress:
    """Put a checkpoint's state back in place, whatever the number of ranks that wrote it.

    Where that is another one, ranks beyond it draw other random numbers than any of the others. Raises
    TrainingError (checkpoint_unusable).
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        if state["format"] not in (FORMAT, FORMAT_OF_RANKS):
            raise _unusable(f"its format is {state['format']}, not one of {FORMAT} and {FORMAT_OF_RANKS}")
        ranks, parts = state.get("ranks", 1), state.get("parts", 1)
        with _reader(folder, "model", parts) as reader:
            _load_model(model, reader, masters)
        with _reader(folder, "optimizer", parts) as reader:
            _load_optimizer(optimizer, reader)
        _restore_random(load_file(folder / file_name("random", world.rank % ranks, ranks)), state)
        if world.rank >= ranks:
            torch.manual_seed(int(torch.randint(1 << 62, ())) + world.rank)
        return Progress(**state["progress"])
    except CheckpointException as error:  # torch's: what each rank's reading failed with, here this one's
        raise _unusable(str(error.failures[0][0])) from error
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unusable(str(error)) from error


def store(
    artefacts: ArtefactStore,
    owner: str,
    scratch: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    masters: Mapping[str, Tensor],
    world: World = World(),
) -> Manifest:
    """Save a checkpoint by way of a folder in `scratch`, and give it to the artefact store.

    Each rank gives its own files. All get the manifest of them all.
    """
    folder = scratch / f"checkpoint-{progress.step}-{world.rank}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(folder, model, optimizer, progress, masters, world)
    manifest = store_folder(artefacts, owner, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return manifest


def store_folder(store: ArtefactStore, owner: str, folder: Path) -> Manifest:
    """Give a folder's files to the artefact store (taken over, not copied, where that is possible)."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {str(path.relative_to(folder)): store.put_file(owner, path, consume=True) for path in paths}
    return Manifest(files=files)


def fetch_folder(store: ArtefactStore, manifest: Manifest, folder: Path) -> None:
    """Bring a checkpoint here, verified by sha256.

    Raises TrainingError (checkpoint_unusable), or a retryable ArtefactError.
    """
    try:
        for name, ref in manifest.files.items():
            target = (folder / name).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise _unusable(f"its manifest names {name!r}, outside the folder")
            store.local_copy(ref, target)
    except ArtefactError as error:
        if error.retryable:  # no room for it here, or the store is away: the checkpoint is sound
            raise
        raise _unusable(str(error)) from error


def _unusable(why: str) -> TrainingError:
    return TrainingError(
        "checkpoint_unusable",
        f"the checkpoint can't be loaded: {why}",
        remedy="submit the job anew, or restore the artefact store",
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _optimizer_tensors(optimizer: torch.optim.Optimizer, world: World) -> dict[str, Tensor]:
    """What this rank writes: step counts are the same on all."""
    found = _numbered(optimizer.state_dict()["state"])
    return {name: value for name, value in found.items() if isinstance(value, DTensor) or world.leads}


def _numbered(state: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{number}.{name}": value for number, part in state.items() for name, value in part.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, reader: HuggingFaceStorageReader) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, shape in _shapes(reader).items():
        number, name = key.split(".", 1)
        weight = weights[int(number)]
        place = torch.zeros_like(weight) if shape == weight.shape else weight.new_zeros(shape)
        state.setdefault(int(number), {})[name] = place
    _read(reader, _numbered(state))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def _load_model(model: nn.Module, reader: HuggingFaceStorageReader, masters: Mapping[str, Tensor]) -> None:
    weights = dict(unique_weights(trained_state(model)))
    if differ := sorted(weights.keys() ^ _shapes(reader).keys()):
        raise _unusable(f"its weights differ from the model's: {differ[:5]}")
    _read(reader, {name: masters.get(name, weight) for name, weight in weights.items()})
    for name, master in masters.items():
        weights[name].copy_(master)


def _write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """This rank's rows, and from which one on they are. (torch's own writer holds them in memory twice.)"""
    parts = {name: tensor for name, tensor in tensors.items() if isinstance(tensor, DTensor)}
    offsets = {
        name: {SAVED_OFFSETS_KEY: list(tensor.__create_chunk_list__()[0].offsets)}
        for name, tensor in parts.items()
    }
    plain = {name: _plain(t.to_local() if isinstance(t, DTensor) else t) for name, t in tensors.items()}
    save_file(plain, path, {CUSTOM_METADATA_KEY: json.dumps(offsets)} if parts else None)


@contextmanager
def _reader(folder: Path, name: str, parts: int) -> Iterator[HuggingFaceStorageReader]:
    """Of the files of all ranks that wrote a part. Raises FileNotFoundError where one is missing."""
    with TemporaryDirectory(dir=folder) as alone:  # it reads all files of a folder
        for number in range(parts):
            file = folder / file_name(name, number, parts)
            (Path(alone) / file.name).symlink_to(file.resolve(strict=True))
        yield HuggingFaceStorageReader(alone)


def _shapes(reader: HuggingFaceStorageReader) -> dict[str, torch.Size]:
    """Of tensors as a whole, by name."""
    found = reader.read_metadata().state_dict_metadata
    return {name: tensor.size for name, tensor in found.items() if isinstance(tensor, TensorStorageMetadata)}


def _read(reader: HuggingFaceStorageReader, tensors: Mapping[str, Tensor]) -> None:
    """Fill tensors, or this rank's rows of them."""
    with warnings.catch_warnings(action="ignore"):  # it says that it asks no other rank, which is by pickle
        dcp.load({name: t.detach() for name, t in tensors.items()}, storage_reader=reader, no_dist=True)


def file_name(name: str, number: int, of: int) -> str:
    """Of what the ranks `0 <= number < of` each write."""
    return f"{name}.safetensors" if of == 1 else f"{name}.{number + 1}-of-{of}.safetensors"


def _random_tensors() -> dict[str, Tensor]:
    states = {"torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["torch_cuda_0"] = torch.cuda.get_rng_state()  # of the rank's own GPU, whatever its number
    return states


def _restore_random(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["torch_cpu"])
    if torch.cuda.is_available() and "torch_cuda_0" in tensors:
        torch.cuda.set_rng_state(tensors["torch_cuda_0"])
    version, internal, gauss = state["python_random"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy_random"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _numpy_state() -> list[object]:
    name, keys, *rest = np.random.get_state()
    return [name, np.asarray(keys).tolist(), *rest]
