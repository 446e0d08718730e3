"""The best checkpoint by a metric is kept besides the newest, whatever comes after it."""

from typing import Any

import pytest

from powermean.contracts.job import JobSpec
from tests.support.service_driver import AttemptDriver, ServiceDriver, example_spec

BEST = {"keep": 1, "best": "eval/reward"}


def step(attempt: AttemptDriver, number: int, value: float | None) -> None:
    """A step with its evaluation and its checkpoint."""
    row = {"step": number, "update": -1, "name": "eval/reward", "value": value}
    assert attempt.post("metrics", {"rows": [row]}).is_success
    assert attempt.commit(number).status_code == 204


def kept(service: ServiceDriver, job_id: str) -> list[tuple[int, float | None, bool]]:
    items = service.person.get(f"/v1/jobs/{job_id}/checkpoints").json()["items"]
    return [(one["step"], one["value"], one["best"]) for one in items]


@pytest.mark.slow
def test_the_best_stays_until_there_is_a_better_one(service: ServiceDriver):
    attempt = service.running(checkpoints=BEST)
    job = attempt.claim.job_id
    step(attempt, 1, 0.5)
    step(attempt, 2, 0.4)
    assert kept(service, job) == [(1, 0.5, True), (2, 0.4, False)]
    step(attempt, 3, 0.5)  # no better than the first
    step(attempt, 4, None)  # not finite: known to be no better
    assert kept(service, job) == [(1, 0.5, True), (4, None, False)]
    step(attempt, 5, 0.6)
    step(attempt, 6, 0.2)
    assert kept(service, job) == [(5, 0.6, True), (6, 0.2, False)]
    answer = service.person.post("/v1/jobs", json=example_spec(model={"from": f"{job}@best"}))
    assert answer.json()["forked_from"] == {"job": job, "step": 5}


def test_the_lowest_may_be_the_best(service: ServiceDriver):
    attempt = service.running(checkpoints=BEST | {"best_is": "lowest"})
    for number, value in enumerate((0.5, 0.3, 0.4), 1):
        step(attempt, number, value)
    assert kept(service, attempt.claim.job_id) == [(2, 0.3, True), (3, 0.4, False)]


def test_without_a_value_none_is_the_best(service: ServiceDriver):
    attempt = service.running(checkpoints=BEST)
    for number in (1, 2):
        assert attempt.commit(number).status_code == 204
    assert kept(service, attempt.claim.job_id) == [(2, None, False)]
    source = f"{attempt.claim.job_id}@best"
    refused = service.person.post("/v1/jobs", json=example_spec(model={"from": source}))
    assert "no checkpoint with a value of checkpoints.best" in refused.text


@pytest.mark.slow
def test_it_stays_through_a_restart_and_counts_only_what_counts(service: ServiceDriver):
    attempt = service.running(checkpoints=BEST)
    job = attempt.claim.job_id
    step(attempt, 1, 0.7)
    step(attempt, 2, 0.4)
    row = {"step": 3, "update": -1, "name": "eval/reward", "value": 0.9}  # of a step that is done again
    assert attempt.post("metrics", {"rows": [row]}).is_success
    assert service.person.post(f"/v1/jobs/{job}/pause").is_success
    assert attempt.finish("checkpointed").status_code == 204
    assert service.person.post(f"/v1/jobs/{job}/resume").is_success
    service.report()
    service.scheduler.turn()
    again = service.claim(f"{job}.2")
    assert again.claim.resume is not None
    assert again.claim.resume.step == 2
    assert again.commit(4).status_code == 204
    assert kept(service, job) == [(1, 0.7, True), (4, None, False)]


def test_a_value_is_that_of_the_first_checkpoint_after_it(service: ServiceDriver):
    attempt = service.running(checkpoints=BEST | {"keep": 9})
    for number, value in ((0, 0.9), (3, 0.5)):
        row = {"step": number, "update": -1, "name": "eval/reward", "value": value}
        assert attempt.post("metrics", {"rows": [row]}).is_success
        assert attempt.commit(number + 2).status_code == 204
    assert attempt.commit(7).status_code == 204
    assert kept(service, attempt.claim.job_id) == [(2, None, False), (5, 0.5, True), (7, None, False)]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"checkpoints": {"best": "eval/rewards"}}, "no metric of whole steps is called eval/rewards"),
        ({"checkpoints": {"best": "loss"}}, "no metric of whole steps is called loss"),
        ({"checkpoints": {"best": "time/checkpoint"}}, "only measured after its step"),
        ({"checkpoints": {"best": "eval/reward"}, "evaluation": {"every": 0}}, "set evaluation.every"),
        (
            {"checkpoints": {"best": "eval/reward"}, "evaluation": {"every": 20}},
            r"below training.steps \(20\)",
        ),
    ],
)
def test_a_metric_that_can_not_tell_is_refused(given: dict[str, Any], why: str):
    with pytest.raises(ValueError, match=why):
        JobSpec.model_validate(example_spec(**given))
