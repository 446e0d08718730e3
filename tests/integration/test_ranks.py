"""Jobs of several ranks, on one node and on two, with ranks that are killed and frozen."""

import math
import os
import signal
import time
from collections.abc import Iterator

import pytest

from powermean.contracts.api import JobState
from powermean.processes import marked
from tests.support.embedded_service import Service, metric_rows, until
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
TRAINING = {"steps": 3, "prompts_per_step": 16, "minibatches": 2, "epochs": 2}
QUIET = {"every": 0, "problems": 10}  # evaluations
OF_THE_RUN = ("time/", "second")  # in the names of metrics that differ from run to run


@pytest.fixture(scope="module")
def second(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with service.second_node(tmp_path_factory.mktemp("second")) as name:
        yield name


def submit(service: Service, **changes: object) -> str:
    return service.client.create_job(tiny_spec("tiny", **changes)).id


def rank(service: Service, number: int) -> int | None:
    """The pid of a rank."""
    found = marked("RANK", str(number)) & service.running("trainer.run")
    return next(iter(found), None)


def test_two_ranks_learn_what_one_does(service: Service) -> None:
    jobs = [
        submit(service, training=TRAINING, evaluation=QUIET, resources={"cpu_ranks": ranks})
        for ranks in (1, 2)
    ]
    one, two = (metric_rows(service.client, service.finished(job_id).id) for job_id in jobs)
    assert one.keys() == two.keys()
    for key, value in one.items():
        if value is not None and not any(part in key[2] for part in OF_THE_RUN):
            found = two[key]
            assert found is not None
            assert math.isclose(found, value, rel_tol=1e-5, abs_tol=1e-5), (key, found, value)
    log = service.client.logs(jobs[1]).text
    assert "[rank 1] " in log


def test_a_killed_rank_ends_both_nodes_and_the_job_goes_on(service: Service, second: str) -> None:
    training = TRAINING | {"steps": 40}
    job_id = submit(
        service, training=training, evaluation=QUIET, checkpoints={"every": 5}, resources={"nodes": 2}
    )
    service.at_step(job_id, 6)
    victim = rank(service, 1)
    assert victim is not None
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    until(lambda: service.client.get_job(job_id).attempts[0].outcome, 20, "the attempt has ended")
    until(lambda: not service.running("trainer.run") or rank(service, 1) != victim, 5, "its ranks are gone")
    assert time.monotonic() - killed < 10
    job = service.finished(job_id)
    first, again = job.attempts
    assert first.error is not None
    assert first.error.code == "trainer_killed"
    assert "Rank 1 of the trainer was killed by SIGKILL" in first.error.message
    assert again.first_step % 5 == 1
    assert 1 < again.first_step <= 41
    rows = metric_rows(service.client, job_id)  # fails on a row that is there twice
    assert sorted(step for step, _, name in rows if name == "reward") == list(range(1, 41))


def test_a_frozen_rank_is_named(service: Service) -> None:
    training = TRAINING | {"steps": 1000}
    job_id = submit(service, training=training, evaluation=QUIET, resources={"cpu_ranks": 2}, max_restarts=0)
    service.at_step(job_id, 1)
    frozen = rank(service, 1)
    assert frozen is not None
    os.kill(frozen, signal.SIGSTOP)
    job = service.ended(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.attempts[0].error is not None
    assert job.attempts[0].error.code == "trainer_frozen"
    assert "Rank 1 " in job.attempts[0].error.message
    assert service.running("trainer.run") == set()
