"""What a node has of an attempt: its claim and its folder, and a program that stands for its own."""

import os
import sys
from pathlib import Path

from powermean.contracts.attempts import Claim
from worker.attempt_dir import AttemptDir
from worker.settings import NodeSettings

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]


def claim(number: int = 1, gpus: tuple[str, ...] = ()) -> Claim:
    """Of a job of one step on a node; a job has an id of its own in each test run."""
    spec = {
        "name": "t",
        "model": {"name": "m"},
        "data": {"kind": "arithmetic"},
        "training": {"steps": 1},
        "resources": {"gpus": len(gpus)},
    }
    return Claim.model_validate(
        {
            "attempt_id": f"job-{os.getpid()}.{number}",
            "job_id": f"job-{os.getpid()}",
            "number": number,
            "spec": spec,
            "allocations": [
                {"role": role, "node_id": "local", "gpu_uuids": gpus} for role in ("trainer", "rollout")
            ],
            "token": "t",
            "lease_s": 60,
            "beat_s": 10,
        }
    )


def made(data_dir: Path, number: int = 1) -> AttemptDir:
    """The folder of a claimed attempt."""
    (data_dir / "attempts").mkdir(parents=True, exist_ok=True)
    taken = claim(number)
    return AttemptDir.create(data_dir / "attempts" / taken.attempt_id, taken)


def settings(tmp_path: Path) -> NodeSettings:
    """Those of a node; nothing that they name is there."""
    return NodeSettings(
        artefacts_url="file:///artefacts",
        data_dir=tmp_path,
        attempt_public_key=Path("/keys/attempt_token.pub"),
    )
