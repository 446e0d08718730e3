"""LoRA adapters of several jobs on one vLLM server.

They are loaded while it runs, replaced in place, and kept apart by name.
"""

import json
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from powermean.contracts.rollout import PublishRequest
from rollout.engine import EngineError, Fence
from rollout.engines.vllm_server import VllmServer
from rollout.weights import WeightSource


@dataclass(frozen=True)
class AdapterShape:
    """What an adapter's weights mean; as in peft's LoraConfig."""

    rank: int
    alpha: float
    target_modules: tuple[str, ...]


@dataclass(frozen=True)
class _Loaded:
    """An adapter that vLLM holds since its start number `start`."""

    name: str
    version: int
    start: int


class Adapters:
    """The adapters of one server, at most one a job. Methods may be called from any thread."""

    def __init__(self, server: VllmServer, weights: WeightSource) -> None:
        self._server = server
        self._weights = weights
        self._fences: dict[str, Fence] = {}  # by job
        self._loaded: dict[str, _Loaded] = {}  # by job
        self._in_use: Counter[str] = Counter()  # by job
        self._lock = Lock()  # of what is in use
        self._publishing = Lock()

    def publish(self, request: PublishRequest, shape: AdapterShape) -> None:
        """Load a job's adapter, or replace it.

        Raises EngineError: fenced, stale_version; adapter_rank, adapter_slots, adapter_busy; those of
        WeightSource and VllmServer.
        """
        with self._publishing:
            self._server.check_ready()
            fence = self._advanced(request)
            self._check(request, shape)
            with self._weights.verified(request) as (path,), self._unused(request.job_id):
                self._load(path, shape, fence)
            self._fences[request.job_id] = fence

    @contextmanager
    def in_use(self, job_id: str, attempt: int) -> Iterator[tuple[str, int]]:
        """The (name, version) of a job's adapter, which is not replaced for as long as the block lasts.

        Raises EngineError: fenced; weights_incomplete where the adapter is not loaded (any more).
        """
        with self._lock:
            if job_id in self._fences:
                self._fences[job_id].check_attempt(job_id, attempt)
            loaded = self._held(job_id)
            if loaded is None or loaded.name != _name(job_id, attempt):
                raise EngineError(
                    503,
                    "weights_incomplete",
                    f"no adapter of attempt {attempt} at job {job_id} is loaded",
                    remedy="Publish the adapter; after a restart the same version is taken.",
                )
            self._in_use[job_id] += 1
        try:
            yield loaded.name, loaded.version
        finally:
            with self._lock:
                self._in_use[job_id] -= 1

    def drop(self, job_id: str) -> None:
        """Free the slot of a job that is over; nothing happens where it has none."""
        with self._publishing, self._unused(job_id):
            if (loaded := self._held(job_id)) is not None:
                self._unload(loaded)
            self._loaded.pop(job_id, None)

    def _held(self, job_id: str) -> _Loaded | None:
        loaded = self._loaded.get(job_id)
        return loaded if loaded is not None and loaded.start == self._server.starts else None

    def _advanced(self, request: PublishRequest) -> Fence:
        fence = self._fences.get(request.job_id)
        if fence is None:
            return Fence(request.job_id, request.attempt, request.version)
        same = (request.attempt, request.version) == (fence.attempt, fence.version)
        if same and self._held(request.job_id) is None:
            return fence
        return fence.advanced(request)

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
        held = [job for job in self._loaded if job != request.job_id and self._held(job)]
        if len(held) >= options.max_loras:
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

    def _load(self, path: Path, shape: AdapterShape, fence: Fence) -> None:
        old, name = self._held(fence.job_id), _name(fence.job_id, fence.attempt)
        replacing = old is not None and old.name == name
        if old is not None and not replacing:
            self._unload(old)
        with tempfile.TemporaryDirectory(prefix="powermean-adapter-") as folder:
            shutil.copyfile(path, Path(folder, "adapter_model.safetensors"))
            Path(folder, "adapter_config.json").write_text(json.dumps(_peft_config(shape)))
            body = {"lora_name": name, "lora_path": folder, "load_inplace": replacing}
            self._call("load adapter", "/v1/load_lora_adapter", body)
        if replacing:
            self._forget_caches()
        self._loaded[fence.job_id] = _Loaded(name, fence.version, self._server.starts)

    def _forget_caches(self) -> None:
        """Cached keys and values go by the adapter's name: those of its last version must not be found.

        Other jobs' completions that are in flight are computed anew; their tokens stay.
        """
        self._call("pause", "/pause?mode=keep&clear_cache=false")
        self._call("reset caches", "/reset_prefix_cache?reset_running_requests=true")
        self._call("resume", "/resume")

    def _unload(self, loaded: _Loaded) -> None:
        self._call("unload adapter", "/v1/unload_lora_adapter", {"lora_name": loaded.name})

    def _call(self, step: str, path: str, body: object = None) -> None:
        """A refused adapter changes nothing; after any other failure the server's adapters are unknown."""
        try:
            self._server.call(step, path, body=body)
        except EngineError as error:
            if step != "load adapter" or error.code != "engine_error":
                self._server.kill(f"{step} failed: {error}")
            raise


def _name(job_id: str, attempt: int) -> str:
    return f"{job_id}.{attempt}"


def _peft_config(shape: AdapterShape) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "target_modules": list(shape.target_modules),
        "bias": "none",
    }
