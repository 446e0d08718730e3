"""Brings to a node what its ranks read of a checkpoint, which of a sharded model may be a small part."""

import json
from pathlib import Path

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef, Manifest
from trainer.learner.checkpoint import fetch_folder, file_name, unusable
from trainer.ranks.world import World

_LENGTH = 8  # bytes at the start of a safetensors file that say how long its header is


def fetch_for_node(store: ArtefactStore, manifest: Manifest, folder: Path, world: World, shards: int) -> None:
    """For the ranks of this node, the first of which calls; `shards` ranks hold the model together.

    Where as many wrote the checkpoint each reads the part that it would write. Of the others' parts the
    headers are enough, which say how large tensors are as a whole: they come unverified, in files without
    numbers. Raises as `fetch_folder` does.
    """
    fetch_folder(store, _some(manifest, {"state.json"}), folder)
    try:
        state = json.loads((folder / "state.json").read_text())
        ranks, parts = int(state.get("ranks", 1)), int(state.get("parts", 1))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise unusable(str(error)) from error
    here = range(world.rank, world.rank + world.local_size)
    # The first part also has what is not sharded, such as step counts.
    numbers = {0, *(rank % parts for rank in here)} if parts == shards else set(range(parts))
    every = {file_name(kind, number, parts) for kind in ("model", "optimizer") for number in range(parts)}
    whole = {file_name(kind, number, parts) for kind in ("model", "optimizer") for number in numbers}
    fetch_folder(store, _some(manifest, whole | {file_name("random", rank, ranks) for rank in here}), folder)
    for name, ref in _some(manifest, every - whole).files.items():
        _fetch_header(store, ref, folder / name)


def _some(manifest: Manifest, names: set[str]) -> Manifest:
    return Manifest(files={name: ref for name, ref in manifest.files.items() if name in names})


def _fetch_header(store: ArtefactStore, ref: ArtefactRef, target: Path) -> None:
    """A file of the right size that has its header and nothing else: it takes next to no room."""
    try:
        length = int.from_bytes(store.read_range(ref, 0, _LENGTH), "little")
        header = store.read_range(ref, 0, min(_LENGTH + length, ref.size))
    except ArtefactError as error:
        if error.retryable:
            raise
        raise unusable(str(error)) from error
    with target.open("wb") as file:
        file.write(header)
        file.truncate(ref.size)
