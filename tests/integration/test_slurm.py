"""Nodes from a real Slurm: they come when there is work, end in mid-job, are taken away, and go when idle."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from powermean.contracts.api import Job
from powermean.processes import end_all
from tests.support.embedded_service import Service, learned, metric_rows, until
from tests.support.real_slurm import KILL_WAIT_S, Slurm, missing
from tests.support.tiny_model import tiny_spec

pytestmark = [
    pytest.mark.integration,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(missing() is not None, reason=f"no Slurm: {missing()}"),
]
STEPS = 12
TRAINING = {"steps": STEPS, "prompts_per_step": 16, "minibatches": 2, "epochs": 2}
SPEC = tiny_spec("tiny", training=TRAINING, resources={"node_labels": {"pool": "cpu"}})
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
        "slurm": {
            "python": sys.executable,
            "log": str(folder / "%x.log"),
            "options": ["--partition=gpu"],
            "kill_wait_s": KILL_WAIT_S,
        },
    }
    (folder / "pools.yaml").write_text(yaml.safe_dump({"pools": [pool]}))
    environment = slurm.environment | {
        "POWERMEAN_POOLS_FILE": str(folder / "pools.yaml"),
        "POWERMEAN_MIN_RUN_S": "1",
        "POWERMEAN_LEASE_S": "60",  # what lapses here, lapses by the pool's word
    }
    service = Service(folder / "home", model_root, environment=environment)
    service.start()
    yield service
    assert service.interrupt() == 130
    end_all(service.all_pids, grace_s=0)


@pytest.fixture(scope="module")
def undisturbed(service: Service, slurm: Slurm) -> Job:
    """A job that a node came for, and that ran there alone."""
    return service.finished(service.client.create_job(SPEC).id)


def test_a_node_comes_for_a_job_and_goes_when_idle(service: Service, slurm: Slurm, undisturbed: Job) -> None:
    assert node_of(undisturbed, 0).startswith("cpu-")
    until(lambda: not slurm.jobs(), START_S, "the idle pilot is let go")
    until(
        lambda: [node.id for node in service.client.nodes().items] == ["local"], START_S, "its node is gone"
    )


def test_a_job_outlives_its_allocation_s_time(service: Service, slurm: Slurm, undisturbed: Job) -> None:
    """It saves a checkpoint before the end, goes on in another allocation, and learns the same."""
    job = service.at_step(service.client.create_job(SPEC).id, 2)
    first = node_of(job, 0)
    (allocation,) = slurm.jobs()
    slurm.command("scontrol", "update", f"JobId={allocation}", "TimeLimit=1")
    job = service.finished(job.id)
    before, after = job.attempts
    assert before.outcome == "checkpointed"
    assert "its time in pool cpu ends at" in (before.reason or "")
    assert node_of(job, 1) != first
    assert 2 < after.first_step <= STEPS
    assert learned(metric_rows(service.client, job.id)) == learned(
        metric_rows(service.client, undisturbed.id)
    )


def test_a_job_goes_on_after_somebody_cancelled_its_allocation(service: Service, slurm: Slurm) -> None:
    """It saves a checkpoint within KillWait; SIGTERM comes to all of its processes."""
    spec = SPEC | {"checkpoints": {"every": 50}}
    job = service.at_step(service.client.create_job(spec).id, 3)
    first = node_of(job, 0)
    slurm.command("scancel", f"--name={first}")
    job = service.finished(job.id)
    before, after = job.attempts
    assert before.outcome == "checkpointed"
    assert f"allocation {first} was being ended" in (before.reason or "")
    assert "CANCELLED: Slurm does not say by whom" in (before.reason or ""), (
        "this Slurm keeps no accounts of who did"
    )
    assert after.first_step > 3
    assert node_of(job, 1) != first


def test_what_runs_goes_on_while_slurm_is_away(service: Service, slurm: Slurm) -> None:
    job = service.at_step(service.client.create_job(SPEC).id, 1)
    slurm.stop_controller()
    job = service.finished(job.id)
    assert len(job.attempts) == 1
    slurm.start_controller()
    until(lambda: not slurm.jobs(), START_S, "the idle pilot is let go")


def node_of(job: Job, attempt: int) -> str:
    return job.attempts[attempt].allocations[0].node_id
