"""Two workers: one is drained while a job trains there, and the job goes on at the other."""

from collections.abc import Iterator

import pytest

from powermean.contracts.api import Job, NodeView
from tests.support.embedded_service import Service, learned, metric_rows, until
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.long, pytest.mark.timeout(900)]
STEPS = 12
TRAINING = {"steps": STEPS, "prompts_per_step": 16, "minibatches": 2, "epochs": 2}
DRAIN_S = 60.0


@pytest.fixture(scope="module")
def second(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with service.second_node(tmp_path_factory.mktemp("second")) as name:
        yield name


def node_of(job: Job, attempt: int) -> str:
    return job.attempts[attempt].allocations[0].node_id


def drained(service: Service, node_id: str) -> NodeView | None:
    found = service.client.get_node(node_id)
    return found if found.drained else None


def test_a_job_goes_on_at_the_other_node_without_a_gap(service: Service, second: str) -> None:
    undisturbed = service.finished(service.client.create_job(tiny_spec("tiny", training=TRAINING)).id)
    job = service.at_step(service.client.create_job(tiny_spec("tiny", training=TRAINING)).id, 2)
    first_node = node_of(job, 0)
    said = service.client.drain_node(first_node, "kernel update")
    assert (said.closed, said.attempts) == ("draining", (job.attempts[0].id,))
    until(lambda: drained(service, first_node), DRAIN_S, "the node is empty")
    job = service.finished(job.id)
    first, other = job.attempts
    assert first.outcome == "checkpointed"
    assert {first_node, node_of(job, 1)} == {"local", second}
    assert 2 < other.first_step <= STEPS
    rows = metric_rows(service.client, job.id)  # fails on a row that is there twice
    assert [step for step in range(1, STEPS + 1) if (step, -1, "reward") not in rows] == []
    assert learned(rows) == learned(metric_rows(service.client, undisturbed.id))
    assert service.client.uncordon_node(first_node).closed is None
    assert service.client.node_samples(first_node).items
