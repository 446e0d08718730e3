"""A recorded step of a real run, replayed by a real worker: the command, Celery, the node, the result."""

import pytest

from powermean.contracts.api import Job
from powermean.contracts.replays import Replay, ReplayState
from tests.support.embedded_service import Service, until
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture(scope="module")
def job(service: Service) -> Job:
    return service.finished(service.client.create_job(tiny_spec("tiny", record={"tokens": 64})).id)


def over(service: Service, asked: Replay) -> Replay:
    def ended() -> Replay | None:
        found = service.client.get_replay(asked.job_id, asked.id)
        return found if found.state.final else None

    found = until(ended, 120, f"{asked.id} is over")
    assert found.state is ReplayState.DONE, found.error
    return found


def test_the_run_comes_out_again(service: Service, job: Job) -> None:
    for step in (1, 4):
        summary = over(service, service.client.replay(job.id, step)).summary
        assert summary is not None
        assert summary.reproduces, summary.largest_difference
        assert 0 < summary.covered <= 64  # of 128


def test_another_objective_gives_other_numbers(service: Service, job: Job) -> None:
    found = over(service, service.client.replay(job.id, 4, "gmpo", {"clip": 0.05}))
    assert found.node == "local"
    assert found.summary is not None
    last = found.summary.updates[-1]
    assert last.replayed.p == 0.0
    assert last.replayed.distance_to_grpo == pytest.approx(1.0)
    tokens = service.client.replay_tokens(job.id, found.id, 0)
    assert tokens.recorded.pieces == tokens.replayed.pieces
