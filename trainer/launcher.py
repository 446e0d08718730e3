"""How an attempt's programs are started: the one place to change for another way of placing processes."""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from powermean.contracts.attempts import Claim
from trainer.attempt_dir import MARK, AttemptDir
from trainer.settings import NodeSettings

# Threads of a parallel region that wait for each other sleep instead of spinning. On a machine that does
# anything else at the same time, spinning makes two threads many times slower than one.
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Command:
    """A program with its arguments and its environment."""

    argv: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)


class Launcher(Protocol):
    """Knows the command lines of an attempt's programs; the supervisor runs and watches them."""

    def prepare(self, attempt: AttemptDir, claim: Claim) -> Command:
        """Makes the model ready on this node; its last line of output is the model's folder."""

    def engine(self, attempt: AttemptDir, claim: Claim, model: Path) -> Command:
        """The rollout service; it writes `engine_file` once it serves."""

    def trainer(self, attempt: AttemptDir, claim: Claim, model: Path) -> Command:
        """The training process."""


class LocalLauncher:
    """Runs everything on this node, on the GPUs of the allocation."""

    def __init__(self, settings: NodeSettings) -> None:
        self._settings = settings

    def prepare(self, attempt: AttemptDir, claim: Claim) -> Command:
        argv = (sys.executable, "-m", "trainer.models", "--claim", str(attempt.claim_file))
        return Command(argv, self._environment(attempt, claim))

    def engine(self, attempt: AttemptDir, claim: Claim, model: Path) -> Command:
        on_gpu = bool(self._gpus(claim))
        dtype = claim.spec.model.dtype
        if dtype == "auto":
            dtype = "bfloat16" if on_gpu else "float32"
        publish = claim.spec.rollout.publish
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
            *("--host", "127.0.0.1"),
            *("--port", "0"),
            *("--ready-file", str(attempt.engine_file)),
            *(("--transfer", publish) if publish in ("nccl", "ipc") else ()),
        )
        return Command(argv, self._environment(attempt, claim) | {"HF_HUB_OFFLINE": "1"})

    def trainer(self, attempt: AttemptDir, claim: Claim, model: Path) -> Command:
        ranks = len(self._gpus(claim))
        start: tuple[str, ...] = (sys.executable, "-m")
        if ranks > 1:
            start += ("torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m")
        argv = (*start, "trainer.run", "--attempt-dir", str(attempt.path))
        return Command(argv, self._environment(attempt, claim) | {"HF_HUB_OFFLINE": "1"})

    def _gpus(self, claim: Claim) -> tuple[str, ...]:
        here = self._settings.node_id
        return tuple(
            uuid
            for part in claim.allocations
            if part.node_id == here and part.role == "trainer"
            for uuid in part.gpu_uuids
        )

    def _environment(self, attempt: AttemptDir, claim: Claim) -> dict[str, str]:
        """This process's environment, less the node's token, with the allocation's GPUs and no others."""
        environment = {k: v for k, v in os.environ.items() if k != "POWERMEAN_NODE_TOKEN"}
        return (
            PATIENT
            | environment
            | {
                MARK: attempt.attempt_id,
                "CUDA_VISIBLE_DEVICES": ",".join(self._gpus(claim)),
                "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # deterministic matrix products
                "PYTHONHASHSEED": "0",
                "PYTHONUNBUFFERED": "1",
                "TOKENIZERS_PARALLELISM": "false",
                "TQDM_DISABLE": "1",
            }
        )
