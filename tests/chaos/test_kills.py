"""kill -9 in mid-run: the job goes on from its last checkpoint, no metric row is lost or doubled.

What a killed run records is compared with what an undisturbed run of the same seed records: the same rows
and, as a checkpoint holds every random state, the same numbers.
"""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from powermean import ApiError
from powermean.contracts.api import Job
from tests.support.embedded_service import Service, learned, metric_rows, until
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.chaos, pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 12
SPEC = tiny_spec(
    "tiny",
    training={"steps": STEPS, "prompts_per_step": 64, "minibatches": 2, "epochs": 2, "micro_batch_groups": 8},
    evaluation={"every": 4, "problems": 25},
    checkpoints={"every": 3},
)
KILL_AT = 4  # the first checkpoint, of step 3, is committed by then
LATER = 7  # and that of step 6


@pytest.fixture(scope="module")
def undisturbed(service: Service) -> dict[tuple[int, int, str], float | None]:
    job = service.finished(service.client.create_job(SPEC).id)
    return metric_rows(service.client, job.id)


def run_to_the_kill(service: Service) -> str:
    job_id = service.client.create_job(SPEC).id
    service.at_step(job_id, KILL_AT)
    return job_id


def kill(pids: set[int]) -> None:
    assert len(pids) == 1, pids
    os.kill(pids.pop(), signal.SIGKILL)


def same_rows(service: Service, job_id: str, undisturbed: dict[tuple[int, int, str], float | None]) -> Job:
    job = service.finished(job_id)
    rows = metric_rows(service.client, job_id)
    assert set(rows) == set(undisturbed)
    assert learned(rows) == learned(undisturbed)
    return job


def resumed(job: Job, at: int = KILL_AT, attempts: int = 2) -> None:
    """In a new attempt, after the last checkpoint that was committed before the kill at this step."""
    assert [attempt.number for attempt in job.attempts] == list(range(1, attempts + 1))
    assert not list(Path("/dev/shm").glob(f"powermean-{job.id}.*"))  # where the weights were in place
    first_step = job.attempts[-1].first_step
    assert first_step > at - 1
    assert (first_step - 1) % 3 == 0


def test_the_trainer_and_later_the_supervisor(
    service: Service, undisturbed: dict[tuple[int, int, str], float | None]
) -> None:
    job_id = run_to_the_kill(service)
    kill(service.running("trainer.run"))
    until(lambda: len(service.client.get_job(job_id).attempts) == 2, 60, "a second attempt")
    service.at_step(job_id, LATER)
    kill(service.running("worker.attempt.supervisor"))
    resumed(same_rows(service, job_id, undisturbed), LATER, attempts=3)


def test_redis_the_worker_and_the_server(
    service: Service, undisturbed: dict[tuple[int, int, str], float | None]
) -> None:
    """The trainer goes on without them in its one attempt, and whoever watches sees every step once."""
    job_id = service.client.create_job(SPEC).id
    kill({pid for pid in service.all_pids() if _is_redis(pid)})  # it comes back empty: wake-ups are lost
    service.at_step(job_id, 2)
    environment = dict(os.environ) | {"POWERMEAN_HOME": str(service.home)}
    command = [sys.executable, "-m", "powermean", "watch", job_id]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout
        seen = [watching.stdout.readline()]  # it is connected
        worker = service.running("worker")
        kill(set(worker))
        kill(service.running("server"))
        job = same_rows(service, job_id, undisturbed)
        seen += watching.stdout  # not communicate: it passes over what readline has buffered
    assert len(job.attempts) == 1
    assert watching.returncode == 0
    steps = [int(line.split("/")[0].removeprefix("step")) for line in seen if line.startswith("step ")]
    assert steps == list(range(1, STEPS + 1))
    until(lambda: service.running("worker") - worker, 30, "a new worker")


@pytest.mark.long
def test_the_whole_service(service: Service, undisturbed: dict[tuple[int, int, str], float | None]) -> None:
    """No process outlives it, and the next start goes on with the job."""
    job_id = run_to_the_kill(service)
    service.kill()
    until(lambda: not service.all_pids(), 10, "all processes gone")
    service.start()
    resumed(same_rows(service, job_id, undisturbed))


@pytest.mark.long
def test_the_artefact_store(
    service: Service, undisturbed: dict[tuple[int, int, str], float | None], tmp_path: Path
) -> None:
    """Its disk is unmounted in mid-run, which leaves an empty folder: nothing is written there."""
    job_id = run_to_the_kill(service)
    store = service.home / "artefacts"
    away = store.rename(service.home / "away")
    store.mkdir()
    try:
        (tmp_path / "sums.jsonl").write_text('{"problem": "1+1", "answer": "2"}\n')
        with pytest.raises(ApiError, match="is not the artefact store"):
            service.client.upload_dataset(tmp_path / "sums.jsonl")
        until(lambda: not service.running("trainer.run"), 60, "the trainer, which can't save, has ended")
        assert list(store.iterdir()) == []
    finally:
        store.rmdir()
        away.rename(store)
    first = same_rows(service, job_id, undisturbed).attempts[0]
    assert first.error is not None
    assert first.error.code == "artefact_store_unavailable"
    assert service.client.datasets().items == ()


def test_stopping_in_order_in_mid_run(
    service: Service, undisturbed: dict[tuple[int, int, str], float | None]
) -> None:
    job_id = run_to_the_kill(service)
    (trainer,) = service.running("trainer.run")
    os.kill(trainer, signal.SIGSTOP)  # it must not be finished before its supervisor is told
    began = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        interrupted = pool.submit(service.interrupt)
        until(lambda: not service.running("worker"), 30, "the worker, which ends first, is gone")
        os.kill(trainer, signal.SIGCONT)
        assert interrupted.result() == 130
    assert time.monotonic() - began < 30
    assert service.all_pids() == set()
    service.start()
    resumed(same_rows(service, job_id, undisturbed))


def _is_redis(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError), open(f"/proc/{pid}/comm") as name:
        return name.read().startswith("valkey")
    return False
