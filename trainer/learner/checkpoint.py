"""Checkpoints: all that a run needs to go on as if nothing had happened, in safetensors and JSON, hashed.

model.safetensors      the weights that are trained (all, or the adapter's), float32
optimizer.safetensors  AdamW's moments and step counts, by number of the weight
random.safetensors     states of torch's random number generators
state.json             how far the run is, and the random states of Python and NumPy

What decides the next step (prompts, seeds, minibatches) is a function of the job's seed and the step, so
`step` is the data cursor too.
"""

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import Manifest
from trainer.failures import TrainingError
from trainer.learner.lora import trained_state
from trainer.learner.model_state import unique_weights

FORMAT = 1


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
) -> None:
    """Write a checkpoint into an empty folder. `masters`: of a model in bfloat16, by name."""
    weights = {
        name: _plain(masters.get(name, weight)) for name, weight in unique_weights(trained_state(model))
    }
    save_file(weights, folder / "model.safetensors")
    save_file(_optimizer_tensors(optimizer), folder / "optimizer.safetensors")
    save_file(_random_tensors(), folder / "random.safetensors")
    state = {
        "format": FORMAT,
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
) -> Progress:
    """Put a checkpoint's state back in place. Raises TrainingError (checkpoint_unusable)."""
    try:
        state = json.loads((folder / "state.json").read_text())
        if state["format"] != FORMAT:
            raise _unusable(f"its format is {state['format']}, not {FORMAT}")
        _load_model(model, load_file(folder / "model.safetensors"), masters)
        _load_optimizer(optimizer, load_file(folder / "optimizer.safetensors"))
        _restore_random(load_file(folder / "random.safetensors"), state)
        return Progress(**state["progress"])
    except (OSError, KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unusable(str(error)) from error


def load_weights(folder: Path, model: nn.Module) -> None:
    """Put a checkpoint's weights alone into a model, or into the adapter of one, whose others may be meta.

    Raises TrainingError (checkpoint_unusable).
    """
    try:
        tensors = load_file(folder / "model.safetensors")
    except (OSError, SafetensorError) as error:
        raise _unusable(str(error)) from error
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
) -> Manifest:
    """Save a checkpoint by way of a folder in `scratch`, and give it to the artefact store."""
    folder = scratch / f"checkpoint-{progress.step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    save(folder, model, optimizer, progress, masters)
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


def _optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state: Mapping[int, Mapping[str, Tensor]] = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": _plain(value) for number, part in state.items() for name, value in part.items()
    }


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


@torch.no_grad()
def _load_model(model: nn.Module, tensors: Mapping[str, Tensor], masters: Mapping[str, Tensor]) -> None:
    _check_names(model, tensors)
    model.load_state_dict(dict(tensors), strict=False)  # names that are tied to another are not in it
    for name, master in masters.items():
        master.copy_(tensors[name])


def _check_names(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    expected = {name for name, _ in unique_weights(trained_state(model))}
    if expected != set(tensors):
        raise _unusable(f"its weights differ from the model's: {sorted(expected ^ set(tensors))[:5]}")


def _random_tensors() -> dict[str, Tensor]:
    states = {"torch_cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"torch_cuda_{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def _restore_random(tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    torch.set_rng_state(tensors["torch_cpu"])
    for i in range(torch.cuda.device_count()):
        if f"torch_cuda_{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"torch_cuda_{i}"], i)
    version, internal, gauss = state["python_random"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy_random"]
    np.random.set_state((name, np.array(keys, dtype=np.uint32), *rest))


def _numpy_state() -> list[object]:
    name, keys, *rest = np.random.get_state()
    return [name, np.asarray(keys).tolist(), *rest]
