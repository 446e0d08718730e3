"""LoRA adapters of several jobs on one vLLM server: loaded and replaced while it runs, kept apart by name.

vLLM reads an adapter's folder again whenever it was evicted, and with `load_inplace` at every step. So each
version has a name and a folder of its own, which stays for as long as vLLM knows the adapter; cached keys and
values go by both, and none of an older version is found.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Lock

from powermean.contracts.rollout import AdapterShape, PublishRequest
from rollout.engine import EngineError, Fence
from rollout.engines.vllm_server import VllmServer
from rollout.weights import WeightSource


@dataclass(frozen=True)
class _Adapter:
    """A job's adapter. `start`: the start of the server that loaded it."""

    fence: Fence
    folder: Path
    start: int

    @property
    def name(self) -> str:
        return f"{self.fence.job_id}.{self.fence.attempt}.{self.fence.version}"


class Adapters:
    """The adapters of one server, at most one a job. Methods may be called from any thread."""

    def __init__(self, server: VllmServer, weights: WeightSource) -> None:
        self._server = server
        self._weights = weights
        self._adapters: dict[str, _Adapter] = {}  # by job
        self._in_use: Counter[str] = Counter()  # by job
        self._lock = Lock()  # of what is in use
        self._changing = Lock()

    def publish(self, request: PublishRequest, shape: AdapterShape) -> None:
        """Load a job's adapter, in the place of the one before.

        Raises EngineError: fenced, stale_version; adapter_rank, adapter_slots, adapter_busy; those of
        WeightSource and VllmServer. The adapter before is served on unless the server went away.
        """
        with self._changing:
            self._server.check_ready()
            old = self._adapters.get(request.job_id)
            fence = Fence(request.job_id, request.attempt, request.version)
            if old is not None:
                fence = old.fence.advanced(request)
            self._check(request, shape)
            with self._weights.verified(request) as (path,), self._unused(request.job_id):
                self._replace(old, self._written(path, shape, fence))

    @contextmanager
    def in_use(self, job_id: str, attempt: int) -> Iterator[tuple[str, int]]:
        """The (name, version) of a job's adapter, which is not replaced for as long as the block lasts.

        After a restart of the server it is loaded again. Raises EngineError (adapter_missing, fenced).
        """
        with self._changing:
            adapter = self._current(job_id)
            adapter.fence.check_attempt(job_id, attempt)
            with self._lock:
                self._in_use[job_id] += 1
        try:
            yield adapter.name, adapter.fence.version
        finally:
            with self._lock:
                self._in_use[job_id] -= 1

    def drop(self, job_id: str) -> None:
        """Free the slot of a job that is over; nothing happens where it has none."""
        with self._changing, self._unused(job_id):
            adapter = self._adapters.pop(job_id, None)
            if adapter is not None:
                self._unload(adapter)
                shutil.rmtree(adapter.folder)

    def _current(self, job_id: str) -> _Adapter:
        adapter = self._adapters.get(job_id)
        if adapter is None:
            raise EngineError(
                409, "adapter_missing", f"job {job_id} has no adapter here", remedy="Publish the adapter."
            )
        if adapter.start != self._server.starts:
            adapter = self._adapters[job_id] = self._load(adapter)
        return adapter

    def _check(self, request: PublishRequest, shape: AdapterShape) -> None:
        options = self._server.options
        if shape.rank > options.max_lora_rank:
            raise EngineError(
                422,
                "adapter_rank",
                f"an adapter of rank {shape.rank} exceeds the engine's {options.max_lora_rank}",
                remedy="Lower the rank, or start the engine with a higher one.",
            )
        if len(request.files) != 1:
            raise EngineError(422, "invalid", "an adapter is one safetensors file", path="files")
        if len(self._adapters.keys() - {request.job_id}) >= options.max_loras:
            raise EngineError(
                409,
                "adapter_slots",
                f"all {options.max_loras} adapter slots of the engine are taken",
                remedy="Wait until another job is over, or start the engine with more.",
            )

    @contextmanager
    def _unused(self, job_id: str) -> Iterator[None]:
        """No completion of the adapter begins or is in flight: it would be of two versions unnoticed."""
        with self._lock:
            if self._in_use[job_id]:
                raise EngineError(
                    409,
                    "adapter_busy",
                    f"completions of job {job_id} are in flight",
                    remedy="Publish the adapter when they are finished.",
                )
            yield

    def _written(self, path: Path, shape: AdapterShape, fence: Fence) -> _Adapter:
        """The adapter in a folder as peft writes them, not loaded yet."""
        folders = self._server.folder / "adapters"
        folders.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(dir=folders))
        shutil.copyfile(path, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(_peft_config(shape)))
        return _Adapter(fence, folder, start=0)

    def _replace(self, old: _Adapter | None, new: _Adapter) -> None:
        """The old one first gives up its slot: vLLM would evict another job's."""
        if old is not None:
            self._unload(old)
        try:
            self._adapters[new.fence.job_id] = self._load(new)
        except EngineError as error:
            shutil.rmtree(new.folder)
            if old is not None and error.code == "engine_error":
                self._adapters[old.fence.job_id] = self._load(old)
            raise
        if old is not None:
            shutil.rmtree(old.folder)

    def _load(self, adapter: _Adapter) -> _Adapter:
        start = self._server.starts
        body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
        try:
            self._server.call("load adapter", "/v1/load_lora_adapter", body=body)
        except EngineError as error:
            if error.code != "engine_error":  # not refused: nobody knows what the server holds now
                self._server.kill(f"loading adapter {adapter.name} failed: {error}")
            raise
        return replace(adapter, start=start)

    def _unload(self, adapter: _Adapter) -> None:
        if adapter.start == self._server.starts:
            self._server.call("unload adapter", "/v1/unload_lora_adapter", body={"lora_name": adapter.name})


def _peft_config(shape: AdapterShape) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "target_modules": list(shape.target_modules),
        "bias": "none",
    }
