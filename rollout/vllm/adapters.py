"""LoRA adapters of several jobs on one vLLM server: loaded and replaced while it runs, distinguished by name.

vLLM re-reads an adapter's folder whenever the adapter was evicted, and with `load_inplace` at every step. So
each version has its own name and folder, which are kept while completions use it. Cached keys and values are
looked up by both, so none of an older version are found.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock

from powermean.contracts.rollout import AdapterShape, AdapterSlots, PublishRequest
from rollout.engine import EngineError, Fence
from rollout.vllm.server import VllmServer
from rollout.weights import WeightSource


@dataclass
class _Adapter:
    """One version of a job's adapter."""

    fence: Fence
    folder: Path
    start: int = 0  # generation of the server that has it loaded
    calls: int = 0  # calls that use it now
    replaced: bool = False  # not available to further calls

    @property
    def name(self) -> str:
        return f"{self.fence.job_id}.{self.fence.attempt}.{self.fence.version}.{self.folder.name}"


class Adapters:
    """The adapters of one server, one per job. Methods may be called from any thread.

    A version that is replaced while completions use it stays loaded beside the new one until they are
    finished. `running` returns the unfinished jobs; when slots run out, those of other jobs are freed.
    """

    def __init__(
        self,
        server: VllmServer,
        weights: WeightSource,
        slots: int,
        running: Callable[[], Collection[str]] | None = None,
    ) -> None:
        self._server = server
        self._weights = weights
        self._slots = slots
        self._running = running
        self._adapters: dict[str, _Adapter] = {}  # by job
        self._lock = Lock()  # guards the table and its entries; never held during a call to the server
        self._changing = Lock()  # serialises publishing, reloading and dropping

    def slots(self) -> AdapterSlots:
        """Slots, and how many are taken."""
        return AdapterSlots(
            slots=self._slots, taken=len(self._adapters), max_rank=self._server.options.max_lora_rank
        )

    def fence(self, job_id: str) -> Fence | None:
        """The fence of a job's newest adapter; None if the job has none."""
        adapter = self._adapters.get(job_id)
        return adapter.fence if adapter is not None else None

    def publish(self, request: PublishRequest, shape: AdapterShape) -> None:
        """Load a job's adapter; calls that start afterwards use it.

        Raises EngineError: fenced, stale_version; adapter_rank, adapter_slots; those of WeightSource and
        VllmServer. The previous adapter then stays in use.
        """
        with self._changing:
            self._server.check_ready()
            before = self.fence(request.job_id)
            fence = Fence(request.job_id, request.attempt, request.version)
            if before is not None:
                fence = before.advanced(request)
            self._check_rank(shape)
            self._make_room(request.job_id)
            with self._weights.verified(request) as (path,):
                new = _Adapter(fence, self._written(path, shape))
            try:
                self._load(new)
            except EngineError:
                shutil.rmtree(new.folder)
                raise
            with self._lock:
                old = self._adapters.get(request.job_id)
                self._adapters[request.job_id] = new
            self._retire(old)

    @contextmanager
    def in_use(self, job_id: str, attempt: int) -> Iterator[tuple[str, int]]:
        """The (name, version) of a job's adapter, which stays loaded during the block.

        After a restart of the server it is loaded again. Raises EngineError (adapter_missing, fenced).
        """
        adapter = self._taken(job_id, attempt)
        if adapter is None:
            with self._changing:
                self._load_again(job_id)
            adapter = self._taken(job_id, attempt)
        if adapter is None:
            raise EngineError(503, "engine_died", "vLLM restarted again", remedy="Ask again.")
        try:
            yield adapter.name, adapter.fence.version
        finally:
            with self._lock:
                adapter.calls -= 1
                over = adapter.replaced and adapter.calls == 0
            if over:
                self._unload(adapter)

    def drop(self, job_id: str) -> None:
        """Free the slot of a job, if it has one."""
        with self._changing:
            self._drop(job_id)

    def _drop(self, job_id: str) -> None:
        with self._lock:
            old = self._adapters.pop(job_id, None)
        self._retire(old)

    def _retire(self, adapter: _Adapter | None) -> None:
        """Unload an adapter that is no longer in the table, now or after the calls that use it have ended."""
        if adapter is None:
            return
        with self._lock:
            adapter.replaced = True
            idle = adapter.calls == 0
        if idle:
            self._unload(adapter)

    def _taken(self, job_id: str, attempt: int) -> _Adapter | None:
        """The job's adapter, counted as in use; None if the server must load it first."""
        with self._lock:
            adapter = self._current(job_id)
            adapter.fence.check_attempt(job_id, attempt)
            if adapter.start != self._server.starts:
                return None
            adapter.calls += 1
            return adapter

    def _load_again(self, job_id: str) -> None:
        with self._lock:
            adapter = self._current(job_id)
        if adapter.start != self._server.starts:
            self._load(adapter)

    def _current(self, job_id: str) -> _Adapter:
        adapter = self._adapters.get(job_id)
        if adapter is None:
            raise EngineError(
                409, "adapter_missing", f"job {job_id} has no adapter here", remedy="Publish the adapter."
            )
        return adapter

    def _check_rank(self, shape: AdapterShape) -> None:
        most = self._server.options.max_lora_rank
        if shape.rank > most:
            raise EngineError(
                422,
                "adapter_rank",
                f"an adapter of rank {shape.rank} exceeds the engine's {most}",
                remedy="Lower the rank, or start the engine with a higher one.",
                path="adapter.rank",
            )

    def _make_room(self, job_id: str) -> None:
        """A slot for the job, if necessary that of an ended one. Raises EngineError (adapter_slots)."""
        if job_id in self._adapters or len(self._adapters) < self._slots:
            return
        if self._running is not None:
            for over in self._adapters.keys() - set(self._running()):
                self._drop(over)
        if len(self._adapters) >= self._slots:
            raise EngineError(
                409,
                "adapter_slots",
                f"all {self._slots} adapter slots of the engine are taken",
                remedy="Wait until another job has ended, or start the engine with more.",
            )

    def _written(self, path: Path, shape: AdapterShape) -> Path:
        """A folder with the adapter in peft's format."""
        folders = self._server.folder / "adapters"
        folders.mkdir(exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="", dir=folders))
        shutil.copyfile(path, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps(_peft_config(shape)))
        return folder

    def _load(self, adapter: _Adapter) -> None:
        start = self._server.starts
        body = {"lora_name": adapter.name, "lora_path": str(adapter.folder)}
        try:
            self._server.call("load adapter", "/v1/load_lora_adapter", body=body)
        except EngineError as error:
            if error.code != "engine_error":  # not a refusal, so the server's state is unknown
                self._server.kill(f"loading adapter {adapter.name} failed: {error}")
            raise
        adapter.start = start

    def _unload(self, adapter: _Adapter) -> None:
        """Make the server forget a version, unless it has restarted since. No call needs the answer."""
        if adapter.start == self._server.starts:
            try:
                self._server.call(
                    "unload adapter", "/v1/unload_lora_adapter", body={"lora_name": adapter.name}
                )
            except EngineError as error:
                if error.code != "engine_died":  # otherwise it is gone with the server
                    self._server.kill(f"unloading adapter {adapter.name} failed: {error}")
        shutil.rmtree(adapter.folder)


def _peft_config(shape: AdapterShape) -> dict[str, object]:
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": shape.rank,
        "lora_alpha": shape.alpha,
        "target_modules": list(shape.target_modules),
        "bias": "none",
    }
