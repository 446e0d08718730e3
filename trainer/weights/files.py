"""Publishes new weights to the rollout service as files.

The weights, or just an adapter, go into safetensors files in the host's shared memory (one host) or in the
artefact store (any hosts), named by job, attempt and version, with their sha256. After the publish a probe
batch is sampled and its log-probs are compared with the trainer's own.
"""

import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal, Protocol

import torch
from peft import PeftModel
from torch import Tensor, nn

from powermean.artefacts import ArtefactStore
from powermean.contracts.rollout import ChannelRequest, HoldRequest, PublishRequest, WeightFile
from rollout.shared_weights import file_head
from trainer.learner.lora import adapter_shape, served_adapter, served_weights
from trainer.learner.model_state import unique_weights

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 (the files are 0600, named by attempt, verified by hash)
SHARD_BYTES = 96 << 20
_HASHERS = 2


class Target(Protocol):
    """One rollout service that accepts weights (such as rollout.client.RolloutClient)."""

    def publish(self, request: PublishRequest, timeout_s: float) -> object: ...

    def open_channel(self, request: ChannelRequest, timeout_s: float) -> object: ...

    def hold(self, request: HoldRequest, timeout_s: float) -> object: ...


class Publisher(Protocol):
    """Sends weights to rollout services: `write`, `publish` to each as often as necessary, `discard`.

    Different threads publish to different services at once.
    """

    @property
    def from_the_start(self) -> bool:
        """Whether there is something to publish before the first step, when the weights are the model's."""

    def write(self, model: nn.Module, version: int) -> PublishRequest:
        """Prepare what will be sent; returns the request that announces it."""

    def publish(self, target: Target, request: PublishRequest, timeout_s: float) -> object:
        """Send what was last written. Raises RolloutError and TrainingError (transfer_failed)."""

    def discard(self, version: int) -> None:
        """Release what was written."""

    def hold_request(self, version: int) -> HoldRequest | None:
        """What tells an engine to complete nothing until `version` is published, before any weight changes.

        None where it may go on: it has a copy of the weights, and GPU memory of its own.
        """

    def close(self) -> None:
        """Release all resources."""


@dataclass(frozen=True)
class WeightWriter:
    """See Publisher. Writes the files of a publish and removes them afterwards."""

    job_id: str
    attempt: int
    method: Literal["shm", "store"]
    dtype: torch.dtype  # of the engine's weights
    store: ArtefactStore
    scratch: Path  # the attempt's own folder, on the store's file system if possible
    shared_memory: Path = SHARED_MEMORY
    adapter_alone: bool = False  # for an engine that accepts LoRA adapters
    changed: bool = False  # the engine's model is not what training begins with
    sleeps: bool = False  # the engine, while the trainer makes a version
    call_ranks: Callable[[], object] = lambda: None  # to `take_part`, where the model is sharded

    @property
    def from_the_start(self) -> bool:
        """See Publisher. Of itself an engine of adapters has the base model alone."""
        return self.adapter_alone or self.changed

    def write(self, model: nn.Module, version: int) -> PublishRequest:
        """Write the weights; returns the request that announces them."""
        folder = self.shared_memory if self.method == "shm" else self.scratch
        shape = None
        self.call_ranks()
        if self.adapter_alone:
            assert isinstance(model, PeftModel)
            shape, weights = adapter_shape(model), served_adapter(model)
        else:
            weights = served_weights(model, self.dtype)
        files: list[WeightFile] = []
        with ThreadPoolExecutor(_HASHERS) as pool, closing(weights):
            shards = [list(weights)] if self.adapter_alone else _shards(weights, self.dtype)
            due: deque[tuple[Path, Future[tuple[str, int]]]] = deque()
            for number, shard in enumerate(shards):
                path = folder / file_name(self.job_id, self.attempt, f"{version}.{number}")
                due.append((path, pool.submit(_write_shard, path, shard, self.dtype)))
                if len(due) > _HASHERS:  # what was gathered or merged takes memory until it is written
                    files.append(self._file(*due.popleft(), version))
            files += [self._file(*one, version) for one in due]
        return PublishRequest(
            job_id=self.job_id,
            attempt=self.attempt,
            version=version,
            method=self.method,
            files=tuple(files),
            adapter=shape,
        )

    def publish(self, target: Target, request: PublishRequest, timeout_s: float) -> object:
        """Announce the files to the engine."""
        return target.publish(request, timeout_s)

    def hold_request(self, version: int) -> HoldRequest | None:
        """See Publisher. The engine has a copy, so it goes on unless it sleeps."""
        if not self.sleeps:
            return None
        return HoldRequest(job_id=self.job_id, attempt=self.attempt, version=version)

    def close(self) -> None:
        """Nothing to close."""

    def discard(self, version: int) -> None:
        """Remove a version's files, of which the engine has its own copy."""
        if self.method == "store":
            self.store.delete_prefix(self._owner(version))
        for path in (
            *self.shared_memory.glob(self._pattern(version)),
            *self.scratch.glob(self._pattern(version)),
        ):
            path.unlink(missing_ok=True)

    def _file(self, path: Path, written: "Future[tuple[str, int]]", version: int) -> WeightFile:
        sha256, size = written.result()
        if self.method == "shm":
            return WeightFile(uri=f"shm:{path.name}", sha256=sha256, size=size)
        ref = self.store.put_file(self._owner(version), path, consume=True)
        return WeightFile(uri=f"store:{ref.key}", sha256=ref.sha256, size=ref.size)

    def _owner(self, version: int) -> str:
        return f"jobs/{self.job_id}/weights/{self.attempt}.{version}"

    def _pattern(self, version: int) -> str:
        return file_name(self.job_id, self.attempt, f"{version}.*")


def take_part(model: nn.Module, dtype: torch.dtype, *, adapter_alone: bool) -> None:
    """What the other ranks of a sharded model do while one writes it; they keep nothing."""
    weights = served_weights(model, dtype)
    if adapter_alone:
        assert isinstance(model, PeftModel)
        weights = served_adapter(model)
    for _ in weights:
        pass


def remove_stale(job_id: str, shared_memory: Path = SHARED_MEMORY) -> None:
    """Remove what killed attempts at the job left in this host's shared memory."""
    for path in shared_memory.glob(file_name(job_id, "*", "*")):
        path.unlink(missing_ok=True)


def file_name(job_id: str, attempt: int | str, what: str) -> str:
    """Of a file in shared memory: who cleans up after an attempt knows it by its beginning."""
    return f"powermean-{job_id}.{attempt}.{what}.safetensors"


def new_file(path: Path) -> FileIO:
    """A file of this user's alone, in the place of what is there: nothing is written through a link."""
    path.unlink(missing_ok=True)
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "r+b", buffering=0)


def fits_shared_memory(
    model: nn.Module, dtype: torch.dtype, shared_memory: Path = SHARED_MEMORY, *, adapter_alone: bool = False
) -> bool:
    """Whether this host has room in shared memory for one version of what is sent.

    Merged weights are as large as the base model's, so nothing is merged to find out.
    """
    if not shared_memory.is_dir():
        return False
    weights = {
        name: weight for name, weight in model.state_dict().items() if (".lora_" in name) is adapter_alone
    }
    needed = sum(weight.numel() * dtype.itemsize for _, weight in unique_weights(weights))
    return shutil.disk_usage(shared_memory).free > 1.1 * needed


def _shards(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[list[tuple[str, Tensor]]]:
    """Split into files of about SHARD_BYTES, so that both sides can hash several at once."""
    shard: list[tuple[str, Tensor]] = []
    size = 0
    for name, weight in weights:
        shard.append((name, weight))
        size += weight.numel() * dtype.itemsize
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_shard(path: Path, shard: Sequence[tuple[str, Tensor]], dtype: torch.dtype) -> tuple[str, int]:
    """Write a safetensors file, hashed in the same pass: (sha256, bytes)."""
    head = file_head((name, _stored(weight, dtype), weight.shape) for name, weight in shard)
    digest, size = hashlib.sha256(), 0
    with new_file(path) as file:
        for view in (memoryview(head), *(numbers(weight, dtype) for _, weight in shard)):
            while view:
                done = file.write(view[: 1 << 26])
                digest.update(view[:done])
                size += done
                view = view[done:]
    return digest.hexdigest(), size


def _stored(weight: Tensor, dtype: torch.dtype) -> torch.dtype:
    """Convert floating-point tensors to the engine's type; counters and masks keep theirs."""
    return dtype if weight.is_floating_point() else weight.dtype


def numbers(weight: Tensor, dtype: torch.dtype) -> memoryview:
    """A weight as the bytes of its file."""
    flat = weight.detach().to(device="cpu", dtype=_stored(weight, dtype)).contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
