"""A fork with real processes: it begins with its parent's weights, though its parent is deleted meanwhile."""

import pytest

from tests.support.embedded_service import Service, metric_rows
from tests.support.tiny_model import tiny_spec

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(900)]
LORA = {"rank": 8, "alpha": 16.0}
KEEP = {"every": 2, "keep": 1, "best": "eval/reward"}
OPTIMIZER = {"learning_rate": 3e-3, "warmup_updates": 0}


def test_a_fork_goes_on_where_its_parents_best_checkpoint_was(service: Service) -> None:
    """An adapter's: the engine has the base model, and gets the adapter before the first evaluation."""
    client, model = service.client, {"lora": LORA}
    spec = tiny_spec("tiny", checkpoints=KEEP, optimizer=OPTIMIZER, evaluation={"every": 2, "problems": 200})
    training = {"steps": 5, "prompts_per_step": 16, "minibatches": 2, "epochs": 2}
    given = spec | {"model": {"folder": "tiny"} | model, "training": training}
    parent = service.finished(client.create_job(given).id)
    best = next(one for one in client.checkpoints(parent.id).items if one.best)
    rows = metric_rows(client, parent.id)
    assert best.value == rows[best.step, -1, "eval/reward"] != rows[0, -1, "eval/reward"]

    fork = given | {"model": {"from": f"{parent.id}@best"} | model, "training": training | {"steps": 1}}
    fork |= {"checkpoints": {"every": 2}}
    child = client.create_job(fork)
    assert child.forked_from is not None
    assert child.forked_from.step == best.step
    client.delete_job(parent.id)
    child = service.finished(child.id)
    before = metric_rows(client, child.id)[0, -1, "eval/reward"]
    assert before == best.value  # the same problems, sampled with the same seed by the same weights
