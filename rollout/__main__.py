"""The rollout service, for one attempt or shared: python -m rollout --engine transformers --model DIR ..."""

import importlib
import os
import secrets
import signal
import socket
import sys
from pathlib import Path
from threading import Thread

from powermean.importing import uncollected

with uncollected():
    import uvicorn

    from powermean.artefacts import ArtefactError, ArtefactStore
    from powermean.contracts.attempts import EngineStart, JobError
    from powermean.engine_selection import EngineName, choose, takes_adapters
    from powermean.memory import engine_bytes, free_bytes, gib
    from powermean.tether import PR_SET_PDEATHSIG, prctl
    from rollout.app import create_app
    from rollout.engine import EngineError, EngineHost, Fence
    from rollout.running_jobs import read_running_jobs
    from rollout.settings import RolloutSettings, parse_settings
    from rollout.vllm import engine as vllm
    from rollout.vllm.adapter_engine import AdapterEngine, load_adapter_engine
    from rollout.vllm.channel import offered
    from rollout.vllm.command import VllmOptions
    from rollout.weights import WeightSource

STOP_TIMEOUT_S = 5
_PASSING = frozenset(
    {"engine_start_timeout", "engine_memory"}
)  # start failures that another start may not have


class _Server(uvicorn.Server):
    """Writes its address once it serves, and closes the engine at the end."""

    def __init__(self, config: uvicorn.Config, url: str, engine: EngineHost, ready_file: Path | None) -> None:
        super().__init__(config)
        self._url = url
        self._engine = engine
        self._ready_file = ready_file
        self.given_up = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self._ready_file is not None:
            _write_whole(self._ready_file, EngineStart(url=self._url))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        self._engine.close()  # here: afterwards uvicorn ends the process with the signal that it caught


def main() -> int:
    """Serve until SIGTERM or the parent's end. Returns 1 if that fails; stderr and the ready file say why."""
    parent = os.getppid()
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    settings = parse_settings()
    try:
        public_key = settings.public_key.read_text()
        listener = _listen(settings)
        engine = _load(settings)
    except (EngineError, ArtefactError) as error:
        return _not_started(settings, error.error, retryable=error.code in _PASSING)
    except OSError as error:
        return _not_started(
            settings, JobError(code="engine_start_failed", message=str(error)), retryable=True
        )
    config = uvicorn.Config(
        create_app(engine, settings, public_key),
        log_level="warning",
        access_log=False,
        timeout_graceful_shutdown=STOP_TIMEOUT_S,
    )
    url = f"http://{_authority(settings.host)}:{listener.getsockname()[1]}"
    server = _Server(config, url, engine, settings.ready_file)
    if settings.jobs_file is not None and isinstance(engine, AdapterEngine):
        Thread(target=end_when_given_up, args=(engine, server), name="end-with-vllm", daemon=True).start()
    server.run(sockets=[listener])
    return 1 if server.given_up else 0


def end_when_given_up(engine: AdapterEngine, server: _Server) -> None:
    """End a shared service whose vLLM died too often; its keeper restarts it."""
    if (why := engine.wait_given_up()) is None:
        return
    server.given_up = server.should_exit = True
    print("error: vLLM was given up:", " | ".join(why.split("\n")), file=sys.stderr, flush=True)


def _not_started(settings: RolloutSettings, error: JobError, *, retryable: bool) -> int:
    print(f"error: {error.message}" + (f" {error.remedy}" if error.remedy else ""), file=sys.stderr)
    if settings.ready_file is not None:
        _write_whole(settings.ready_file, EngineStart(error=error, retryable=retryable))
    return 1


def _load(settings: RolloutSettings) -> EngineHost:
    store = ArtefactStore(settings.artefacts_url, existing=True) if settings.artefacts_url else None
    weights = WeightSource(store)
    fence = Fence(settings.job_id, settings.attempt, 0) if settings.job_id is not None else None
    engine = choose(settings.engine, settings.model, on_gpu=settings.device != "cpu")
    print(f"rollout: the engine is {engine}", file=sys.stderr)
    if settings.device == "cpu":
        check_memory(engine, settings.model, settings.dtype)
    if engine == vllm.NAME:
        options = VllmOptions(
            settings.model,
            settings.dtype,
            max_model_len=settings.max_model_len,
            gpu_memory_share=settings.gpu_memory_share,
            max_lora_rank=settings.max_lora_rank,
            transfer=offered(settings.transfer, on_gpu=settings.device != "cpu"),
            tensor_parallel=settings.tensor_parallel,
            sleep=settings.sleep and settings.device != "cpu",
        )
        if settings.max_adapters and _adapters_work(settings):
            listed = settings.jobs_file
            running = (lambda: read_running_jobs(listed)) if listed is not None else None
            return load_adapter_engine(
                options, slots=settings.max_adapters, weights=weights, only=fence, running=running
            )
        assert fence is not None  # see RolloutSettings
        return vllm.load_engine(options, fence=fence, weights=weights)
    assert fence is not None
    if settings.tensor_parallel > 1:
        raise EngineError(
            500,
            "vllm_missing",
            "an engine with several GPUs needs vLLM, and the transformers engine was chosen",
            remedy="Set rollout.gpus_per_replica to 1; with rollout.engine: vllm the error says why.",
            path="rollout.gpus_per_replica",
        )
    # Imported here on purpose: beside vLLM, which is a process of its own, nothing needs PyTorch.
    with uncollected():
        transformers = importlib.import_module("rollout.transformers.start")
    started: EngineHost = transformers.start(settings, fence, weights)
    return started


def check_memory(engine: EngineName, model: Path, dtype: str) -> None:
    """Raises EngineError (engine_memory) if the engine does not fit the CPU's free memory."""
    needed, free = engine_bytes(engine, model, 2 if dtype == "bfloat16" else 4), free_bytes()
    if free is not None and needed > free:
        raise EngineError(
            507,
            "engine_memory",
            f"the {engine} engine needs at least {gib(needed)} for {model.name}, {gib(free)} are free",
            remedy="Free memory on the node, or use a smaller model or bfloat16.",
        )


def _adapters_work(settings: RolloutSettings) -> bool:
    """False: the job sends merged weights. Raises EngineError (adapters_unsupported) for a shared engine."""
    if takes_adapters(settings.model):
        return True
    if settings.job_id is not None:
        return False
    raise EngineError(
        500,
        "adapters_unsupported",
        f"vLLM supports no LoRA adapters for the model in {settings.model}, so jobs can't share it",
        remedy="Give each job its own engine: LoRA jobs publish merged weights there.",
    )


def _listen(settings: RolloutSettings) -> socket.socket:
    """A bound socket, so that a port in use is noticed before the model is loaded."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from error
    return listener


def _authority(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _write_whole(path: Path, start: EngineStart) -> None:
    """Write the file so that readers see all of it or nothing."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    temporary.write_text(start.model_dump_json(exclude_none=True))
    temporary.replace(path)


if __name__ == "__main__":
    sys.exit(main())
