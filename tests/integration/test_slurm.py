"""Nodes from a real Slurm: they come when there is work, end in mid-job, are taken away, and go when idle."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from powermean.processes import end_all
from tests.support.embedded_service import Service, until
from tests.support.real_slurm import Slurm, missing
from tests.support.tiny_model import tiny_spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}"),
]
STEPS = 12
TRAINING = {"steps": STEPS, "prompts_per_step": 16, "minibatches": 2, "epochs": 2}
ON_SLURM = {"node_labels": {"pool": "cpu"}}
START_S = 60.0


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        yield slurm
    finally:
        slurm.stop()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, model_root: Path, slurm: Slurm) -> Iterator[Service]:
    """The service with a pool; its own node has no such label, so the jobs here need the pool."""
    folder = tmp_path_factory.mktemp("service")
    pool = {
        "name": "cpu",
        "kind": "slurm",
        "max": 2,
        "idle_s": 3,
        "poll_s": 0.5,
        "time_limit_s": 3600,
        "drain_s": 50,
        "shape": {"cpu_slots": 1},
        "data_dir": str(folder / "pilots"),
        "environment": {
            "POWERMEAN_MODEL_ROOTS": str(model_root),
            "PYTHONPATH": os.getcwd(),
            "OMP_NUM_THREADS": "1",
        },
        "slurm": {"python": sys.executable, "log": str(folder / "%x.log"), "options": ["--partition=gpu"]},
    }
    (folder / "pools.yaml").write_text(yaml.safe_dump({"pools": [pool]}))
    environment = slurm.environment | {
        "POWERMEAN_POOLS_FILE": str(folder / "pools.yaml"),
        "POWERMEAN_MIN_RUN_S": "1",
    }
    service = Service(folder / "home", model_root, environment=environment)
    service.start()
    yield service
    assert service.interrupt() == 130
    end_all(service.all_pids, grace_s=0)


def test_a_node_comes_for_a_job_and_goes_when_idle(service: Service, slurm: Slurm) -> None:
    spec = tiny_spec("tiny", training=TRAINING, resources=ON_SLURM)
    job = service.finished(service.client.create_job(spec).id)
    assert job.attempts[0].allocations[0].node_id.startswith("cpu-")
    until(lambda: not slurm.jobs(), START_S, "the idle pilot is let go")
