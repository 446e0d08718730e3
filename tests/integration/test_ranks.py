"""Jobs of several ranks, on one node and on two, with ranks that are frozen and killed."""

import math
import os
import signal
import time
from pathlib import Path

import pytest

from powermean.contracts.api import Job, JobState
from powermean.processes import marked
from tests.support.embedded_service import Service, metric_rows, until
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
TRAINING = {"steps": 3, "prompts_per_step": 16, "minibatches": 2, "epochs": 2}
QUICK = {"evaluation": {"every": 0, "problems": 10}, "checkpoints": {"every": 2}}
OF_THE_RUN = ("time/", "second")  # in the names of metrics that differ from run to run
Rows = dict[tuple[int, int, str], float | None]


def submit(service: Service, *, steps: int = 3, **changes: object) -> str:
    spec = tiny_spec("tiny", training=TRAINING | {"steps": steps}, **QUICK, **changes)
    return service.client.create_job(spec).id


def rank(service: Service, number: int) -> int:
    """Its process."""
    (pid,) = marked("RANK", str(number)) & service.running("trainer.run")
    return pid


def in_steps(rows: Rows) -> Rows:
    """Those of the first three steps, without those that are another run's by nature."""
    return {
        key: value
        for key, value in rows.items()
        if 1 <= key[0] <= 3 and not any(part in key[2] for part in OF_THE_RUN) and "eval" not in key[2]
    }


def over(job: Job, attempt: int) -> bool:
    return job.attempts[attempt].outcome is not None


def test_two_ranks_learn_what_one_does_and_a_frozen_one_is_named(service: Service) -> None:
    alone = in_steps(metric_rows(service.client, service.finished(submit(service)).id))
    job_id = submit(service, steps=10_000, resources={"cpu_ranks": 2}, max_restarts=0)
    service.at_step(job_id, 3)
    os.kill(rank(service, 1), signal.SIGSTOP)
    job = service.ended(job_id)

    together = in_steps(metric_rows(service.client, job_id))
    assert together.keys() == alone.keys()
    for key, value in alone.items():
        found = together[key]
        assert (found is None) == (value is None), key
        if value is not None and found is not None:
            assert math.isclose(found, value, rel_tol=1e-5, abs_tol=1e-5), (key, found, value)

    (attempt,) = job.attempts
    assert job.state is JobState.FAILED
    assert attempt.error is not None
    assert (attempt.error.code, "Rank 1 " in attempt.error.message) == ("trainer_frozen", True)
    assert service.running("trainer.run") == set()
    assert "[rank 1] " in service.client.logs(job_id).text


def test_a_killed_rank_ends_both_nodes_and_the_job_goes_on(service: Service, tmp_path: Path) -> None:
    with service.second_node(tmp_path):
        job_id = submit(service, steps=20, resources={"nodes": 2})
        service.at_step(job_id, 3)
        both = {rank(service, 0), rank(service, 1)}
        os.kill(rank(service, 1), signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: not both & service.running("trainer.run"), 20, "all of its ranks are gone")
        until(lambda: over(service.client.get_job(job_id), 0), 20, "its attempt has ended")
        seconds = time.monotonic() - killed
        job = service.finished(job_id)

        first, second, *_ = job.attempts  # on a busy machine a node may lose touch later
        assert first.error is not None
        assert first.error.code == "trainer_killed"
        assert "Rank 1 of the trainer was killed by SIGKILL" in first.error.message
        assert seconds < 10
        assert second.first_step % 2 == 1, "it goes on after a checkpoint"
        assert second.first_step > 1
        rows = metric_rows(service.client, job_id)  # fails on a row that is there twice
        assert sorted(step for step, _, name in rows if name == "reward") == list(range(1, 21))
        assert 2 in [
            value for (_, _, name), value in rows.items() if name == "sampling/replicas"
        ]  # a node each
        logs = [service.client.logs(job_id, attempt=1, node_rank=node).text for node in (0, 1)]
        assert "[rank 1] " in logs[1]
        print(f"both nodes were free of it after {seconds:.1f} s\nattempt 1: {first.error.message}")
        print(*logs, sep="\n--- node_rank 1 ---\n")
    ours = (job_id, *(f"_{pid}_" for pid in both))
    assert [path for path in Path("/dev/shm").iterdir() if any(one in path.name for one in ours)] == []
