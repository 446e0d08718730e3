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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint._hf_utils import CUSTOM_METADATA_KEY, SAVED_OFFSETS_KEY
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_parts
from torch.distributed.tensor import DTensor

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef, Manifest
from trainer.failures import TrainingError
from trainer.learner.lora import trained_state
from trainer.learner.model_state import unique_weights
from trainer.ranks.exchange import Ranks
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
    beta: float | None = None  # of the KL penalty; None in checkpoints from before it could be adapted

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
        state = _numbered(optimizer.state_dict()["state"])
        _write(held, world, folder / file_name("model", world.rank, parts))
        _write(state, world, folder / file_name("optimizer", world.rank, parts))
    save_file(_random_tensors(), folder / file_name("random", world.rank, world.size))
    if not world.leads:
        return
    facts = {
        "format": FORMAT if world.size == 1 else FORMAT_OF_RANKS,
        "ranks": world.size,
        "parts": parts,
        "progress": asdict(progress),
        "python_random": random.getstate(),
        "numpy_random": _numpy_state(),
    }
    (folder / "state.json").write_text(json.dumps(facts))


def load(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, Tensor] = MappingProxyType({}),
    world: World = World(),
) -> Progress:
    """Put a checkpoint's state back in place, whatever the number of ranks that wrote it.

    A rank that there was not goes on with the random numbers it has been seeded for. Raises TrainingError
    (checkpoint_unusable).
    """
    try:
        state = json.loads((folder / "state.json").read_text())
        if state["format"] not in (FORMAT, FORMAT_OF_RANKS):
            raise unusable(f"its format is {state['format']}, not one of {FORMAT} and {FORMAT_OF_RANKS}")
        ranks, parts = state.get("ranks", 1), state.get("parts", 1)
        with _reader(folder, "model", parts) as reader:
            _load_model(model, reader, masters)
        with _reader(folder, "optimizer", parts) as reader:
            _load_optimizer(optimizer, reader)
        if world.rank < ranks:
            _restore_random(load_file(folder / file_name("random", world.rank, ranks)), state)
        return Progress(**state["progress"])
    except CheckpointException as error:  # torch's: what each rank's reading failed with, here this one's
        raise unusable(str(error.failures[0][0])) from error
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise unusable(str(error)) from error


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights alone into a model, or into the adapter of one, whose others may be meta.

    Raises TrainingError (checkpoint_unusable).
    """
    try:
        parts = json.loads((folder / "state.json").read_text()).get("parts", 1)
        with _reader(folder, "model", parts) as reader:
            tensors = {name: torch.zeros(shape) for name, shape in _shapes(reader).items()}
            _read(reader, tensors)
    except CheckpointException as error:
        raise unusable(str(error.failures[0][0])) from error
    except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise unusable(str(error)) from error
    _check_names(model, tensors)
    meta = any(weight.is_meta for weight in model.state_dict().values())
    model.load_state_dict(tensors, strict=False, assign=meta)


def store(
    artefacts: ArtefactStore,
    owner: str,
    scratch: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    masters: Mapping[str, Tensor],
    ranks: Ranks = Ranks(),
) -> Manifest:
    """Save a checkpoint by way of a folder in `scratch`, and give it to the artefact store.

    Each rank gives its own files; all get the manifest of them all.
    """
    folder = scratch / f"checkpoint-{progress.step}-{ranks.world.rank}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(folder, model, optimizer, progress, masters, ranks.world)
    manifest = store_folder(artefacts, owner, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return _of_all(ranks, manifest)


def _of_all(ranks: Ranks, manifest: Manifest) -> Manifest:
    """The files of all ranks' manifests."""
    text = manifest.model_dump_json().encode()
    rows = torch.zeros(ranks.world.size, ranks.most(len(text)), dtype=torch.uint8)
    rows[ranks.world.rank] = torch.frombuffer(bytearray(text.ljust(rows.shape[1])), dtype=torch.uint8)
    files: dict[str, ArtefactRef] = {}
    for row in ranks.total(rows):
        files |= Manifest.model_validate_json(row.numpy().tobytes()).files
    return Manifest(files=files)


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
                raise unusable(f"its manifest names {name!r}, outside the folder")
            store.local_copy(ref, target)
    except ArtefactError as error:
        if error.retryable:  # no room for it here, or the store is away: the checkpoint is sound
            raise
        raise unusable(str(error)) from error


def unusable(why: str) -> TrainingError:
    """The error of a checkpoint that can't be read."""
    return TrainingError(
        "checkpoint_unusable",
        f"the checkpoint can't be loaded: {why}",
        remedy="submit the job anew, or restore the artefact store",
    )


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()


def _numbered(state: Mapping[int, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{number}.{name}": value for number, part in state.items() for name, value in part.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, reader: HuggingFaceStorageReader) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, shape in _shapes(reader).items():
        number, name = key.split(".", 1)
        weight = weights[int(number)]
        moment = shape == weight.shape  # else a count
        place = torch.zeros_like(weight) if moment else torch.zeros(shape, device=weight.device)
        state.setdefault(int(number), {})[name] = place
    _read(reader, _numbered(state))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def _load_model(model: nn.Module, reader: HuggingFaceStorageReader, masters: Mapping[str, Tensor]) -> None:
    _check_names(model, _shapes(reader))
    weights = dict(unique_weights(trained_state(model)))
    _read(reader, {name: masters.get(name, weight) for name, weight in weights.items()})
    for name, master in masters.items():
        weights[name].copy_(master)


def _write(tensors: Mapping[str, Tensor], world: World, path: Path) -> None:
    """This rank's rows, and from which one on they are. (torch's own writer holds them in memory twice.)"""
    # What is not sharded, such as step counts, is the same on all.
    own = {name: t for name, t in tensors.items() if isinstance(t, DTensor) or world.leads}
    offsets = {name: {SAVED_OFFSETS_KEY: _offsets(tensor)} for name, tensor in own.items()}
    plain = {name: _plain(t.to_local() if isinstance(t, DTensor) else t) for name, t in own.items()}
    # An optimiser that was loaded has another order of weights, and the file should be the same.
    save_file(plain, path, {CUSTOM_METADATA_KEY: json.dumps(offsets, sort_keys=True)})


def _offsets(tensor: Tensor) -> list[int]:
    if isinstance(tensor, DTensor):
        return list(tensor.__create_chunk_list__()[0].offsets)  # type: ignore[no-untyped-call]
    return [0] * tensor.dim()


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
        load_parts({name: t.detach() for name, t in tensors.items()}, storage_reader=reader, no_dist=True)


def file_name(name: str, number: int, of: int) -> str:
    """Of what the ranks `0 <= number < of` each write."""
    return f"{name}.safetensors" if of == 1 else f"{name}.{number + 1}-of-{of}.safetensors"


def _check_names(model: nn.Module, tensors: Mapping[str, object]) -> None:
    expected = {name for name, _ in unique_weights(trained_state(model))}
    if expected != set(tensors):
        raise unusable(f"its weights differ from the model's: {sorted(expected ^ set(tensors))[:5]}")


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
