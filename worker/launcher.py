"""How the programs of an attempt and of an engine service are started.

This is the one place to change for another way of placing processes.
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

from powermean.contracts.attempts import Claim
from powermean.contracts.engines import EngineOrder
from powermean.contracts.secrets import HUB_TOKENS, SecretValues
from powermean.setting_files import SUFFIX
from worker.attempt_dir import MARK, AttemptDir
from worker.settings import NodeSettings

# Waiting threads of a parallel region sleep instead of spinning. If the machine does anything else at the
# same time, spinning makes two threads many times slower than one.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
# glibc gives blocks above this size back as soon as they are freed. By default it raises the size to 32 MB as
# it goes, and activations then share a heap with holes: up to half as much memory again (docs/log.md).
COMPACT = {"MALLOC_MMAP_THRESHOLD_": str(2 << 20)}
ENGINE_MARK = "POWERMEAN_ENGINE_ID"  # in the environment of all processes of an engine service
# The worker's own: whoever has the first may claim any attempt, with the second's password make workers act.
SECRETS = frozenset(
    name + suffix
    for suffix in ("", SUFFIX)
    for name in (
        "POWERMEAN_NODE_TOKEN",
        "POWERMEAN_REDIS_URL",
        "POWERMEAN_DATABASE_URL",
        "POWERMEAN_API_KEY",
        "POWERMEAN_BOOTSTRAP_ADMIN_KEY",
        "POWERMEAN_BOOTSTRAP_NODE_TOKEN",
    )
)
OWN_GPU_SHARE = "0.9"  # share of a GPU's memory, if no trainer shares the GPU


@dataclass(frozen=True)
class Command:
    """A program with its arguments, its environment, and the secrets that come on top of that."""

    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    secrets: SecretValues = field(default_factory=dict, repr=False)
    shielded: bool = False  # from SIGTERM: in a pilot that is for its supervisor


class Launcher(Protocol):
    """Knows the command lines of an attempt's programs; the supervisor runs and watches them."""

    def prepare(self, attempt: AttemptDir, claim: Claim) -> Command:
        """Prepares the model on this node; its last line of output is the model's folder."""

    def engine(
        self, attempt: AttemptDir, claim: Claim, model: Path, replica: int = 0, port: int = 0
    ) -> Command:
        """The rollout service, one of `rollout.replicas`; it writes its `engine_file` when it is ready.

        `port`: where it listens; 0: on any that is free.
        """

    def trainer(self, attempt: AttemptDir, claim: Claim, model: Path) -> Command:
        """A training process. All ranks see all GPUs of their node's allocation: LOCAL_RANK picks one."""


class LocalLauncher:
    """Runs everything on this node, on the GPUs of the allocation.

    `secrets` are the job's. The trainer gets all of them, what prepares the model gets those that the hub
    asks for, and the engine, which loads the prepared model, gets none.
    """

    def __init__(self, settings: NodeSettings, secrets: SecretValues | None = None) -> None:
        self._settings = settings
        self._secrets = secrets or {}

    def prepare(self, attempt: AttemptDir, claim: Claim) -> Command:
        program = "trainer.models" if claim.origin is None else "trainer.forks"
        argv = (sys.executable, "-m", program, "--claim", str(attempt.claim_file))
        return self._command(argv, self._environment(attempt, ()), hub_tokens(self._secrets))

    def engine(
        self, attempt: AttemptDir, claim: Claim, model: Path, replica: int = 0, port: int = 0
    ) -> Command:
        size = claim.spec.rollout.gpus_per_replica
        gpus = self._gpus(claim, "rollout")[replica * size : (replica + 1) * size]
        on_gpu = bool(gpus)
        dtype = claim.spec.model.dtype
        if dtype == "auto":
            dtype = "bfloat16" if on_gpu else "float32"
        publish = claim.spec.rollout.publish
        split = claim.spec.resources.placement == "split"
        # Trainers on other nodes reach only an engine that listens there; it wants the attempt's token.
        host = self._settings.node_address if claim.spec.resources.nodes > 1 else "127.0.0.1"
        argv = (
            *(sys.executable, "-m", "rollout"),
            *("--engine", claim.spec.rollout.engine),
            *("--model", str(model)),
            *("--dtype", dtype),
            *("--device", "cuda" if on_gpu else "cpu"),
            *("--job-id", claim.job_id),
            *("--attempt", str(claim.number)),
            *("--public-key", str(self._settings.attempt_public_key)),
            *("--artefacts-url", self._settings.artefacts_url),
            *("--host", host),
            *("--allowed-host", host),
            *("--port", str(port)),
            *("--ready-file", str(attempt.engine_file(replica))),
            *_adapter_flags(claim),
            *(("--transfer", publish) if publish in ("nccl", "ipc") else ()),
            *(("--gpu-memory-share", OWN_GPU_SHARE) if split else ()),
            *(("--tensor-parallel", str(size)) if size > 1 else ()),
            *(("--sleep", "true") if claim.spec.engine_sleeps else ()),
        )
        return self._command(argv, _offline(self._environment(attempt, gpus)))

    def trainer(self, attempt: AttemptDir, claim: Claim, model: Path) -> Command:
        gpus = self._gpus(claim, "trainer")
        argv = (sys.executable, "-m", "trainer.run", "--attempt-dir", str(attempt.path))
        environment = ({} if gpus else COMPACT) | self._environment(attempt, gpus)
        return self._command(argv, _offline(environment), self._secrets)

    def _command(
        self, argv: tuple[str, ...], environment: dict[str, str], secrets: SecretValues | None = None
    ) -> Command:
        return Command(argv, environment, secrets or {}, shielded=self._settings.pilot is not None)

    def _gpus(self, claim: Claim, role: Literal["trainer", "rollout"]) -> tuple[str, ...]:
        here = self._settings.node_id
        return tuple(
            uuid
            for part in claim.allocations
            if part.node_id == here and part.role == role
            for uuid in part.gpu_uuids
        )

    def _environment(self, attempt: AttemptDir, gpus: tuple[str, ...]) -> dict[str, str]:
        return _environment(gpus) | {
            MARK: attempt.mark,
            "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products
            "PYTHONHASHSEED": "0",
        }


class EngineLauncher(Protocol):
    """Knows the command lines of an engine service's programs; its keeper runs and watches them."""

    def prepare(self, order: EngineOrder, spec_file: Path) -> Command:
        """Prepares the model; its last line of output is the folder, or an EngineStart with an error."""

    def serve(self, order: EngineOrder, model: Path, folder: Path, port: int) -> Command:
        """The rollout service; it writes `engine.json` in `folder` when it is ready."""


class LocalEngineLauncher:
    """Runs the service on this node, on the GPUs of the order."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings

    def prepare(self, order: EngineOrder, spec_file: Path) -> Command:
        argv = (sys.executable, "-m", "trainer.models", "--engine", str(spec_file))
        environment = _environment(()) | {ENGINE_MARK: order.id}
        return Command(argv, environment, shielded=self._settings.pilot is not None)

    def serve(self, order: EngineOrder, model: Path, folder: Path, port: int) -> Command:
        spec, settings = order.spec, self._settings
        on_gpu = bool(order.gpu_uuids)
        dtype = spec.dtype if spec.dtype != "auto" else "bfloat16" if on_gpu else "float32"
        argv = [
            *(sys.executable, "-m", "rollout"),
            *("--engine", "vllm"),
            *("--model", str(model)),
            *("--dtype", dtype),
            *("--device", "cuda" if on_gpu else "cpu"),
            *("--max-adapters", str(spec.max_adapters)),
            *("--max-lora-rank", str(spec.max_lora_rank)),
            *("--jobs-file", str(folder / "jobs.json")),
            *("--public-key", str(settings.attempt_public_key)),
            *("--artefacts-url", settings.artefacts_url),
            *("--host", settings.engine_host or "127.0.0.1"),
            *("--port", str(port)),
            *("--ready-file", str(folder / "engine.json")),
        ]
        if settings.engine_host is not None:
            argv += ["--allowed-host", settings.engine_host]
        if spec.max_model_len is not None:
            argv += ["--max-model-len", str(spec.max_model_len)]
        if on_gpu:
            argv += ["--gpu-memory-share", OWN_GPU_SHARE]
        environment = _environment(order.gpu_uuids) | {ENGINE_MARK: order.id}
        return Command(tuple(argv), _offline(environment), shielded=settings.pilot is not None)


def without_secrets() -> dict[str, str]:
    """This process's environment, for programs that need an attempt's token at most."""
    return {name: value for name, value in os.environ.items() if name not in SECRETS}


def hub_tokens(secrets: SecretValues) -> SecretValues:
    """Those that a model is fetched with."""
    return {name: value for name, value in secrets.items() if name in HUB_TOKENS}


def _offline(environment: dict[str, str]) -> dict[str, str]:
    """For a program whose model is prepared: it asks no hub, and needs no token of the node's for one."""
    return {name: value for name, value in environment.items() if name not in HUB_TOKENS} | {
        "HF_HUB_OFFLINE": "1"
    }


def _environment(gpus: tuple[str, ...]) -> dict[str, str]:
    """The environment of a program that is restricted to these GPUs."""
    return (
        PATIENT
        | without_secrets()
        | {
            "CUDA_VISIBLE_DEVICES": ",".join(gpus),
            "PYTHONUNBUFFERED": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "TQDM_DISABLE": "1",
        }
    )


def _adapter_flags(claim: Claim) -> tuple[str, ...]:
    """Flags for adapters: a LoRA job's own vLLM gets its adapter, the transformers engine merged weights."""
    lora = claim.spec.model.lora
    if lora is None or claim.spec.rollout.engine == "transformers":
        return ()
    return ("--max-adapters", "1", "--max-lora-rank", str(lora.rank))
