"""A job's health over REST, from rows in a real database."""

import pytest

from powermean.contracts.health import JobHealth
from powermean.health_rules import WINDOW
from tests.support.reports import next_attempt, post_rows, row
from tests.support.service_driver import error_of


def health_of(service, attempt):
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/health")
    assert answer.status_code == 200, answer.text
    return JobHealth.model_validate(answer.json())


def test_a_job_without_numbers(service):
    assert health_of(service, service.running()).findings[0].code == "too_few_steps"


def test_the_last_steps_are_judged(service):
    attempt = service.running(training={"steps": 40})
    calm = [row(s, "clip_fraction/mean", 0.9 if s < 5 else 0.01, update=3) for s in range(1, 31)]
    post_rows(attempt, *calm, *(row(s) for s in range(1, 31)))
    state = health_of(service, attempt)
    assert state.level == "ok"
    assert (state.first_step, state.last_step) == (30 - WINDOW + 1, 30)
    post_rows(
        attempt,
        *(row(s) for s in range(31, 36)),
        *(row(s, "clip_fraction/mean", 0.4, update=3) for s in range(31, 36)),
    )
    assert [(one.code, one.level) for one in health_of(service, attempt).findings] == [("clipping", "bad")]


@pytest.mark.slow
def test_what_a_later_attempt_repeats_is_not_judged(service):
    first = service.running()
    post_rows(first, *(row(step, "frac_reward_zero_std", 1.0 if step > 2 else 0.0) for step in range(1, 8)))
    first.commit(2)
    second = next_attempt(service, first)
    post_rows(second, *(row(step, "frac_reward_zero_std", 0.1) for step in range(3, 8)))
    assert health_of(service, second).level == "ok"


def test_no_such_job(service):
    answer = service.person.get("/v1/jobs/job-none/health")
    assert answer.status_code == 404
    assert error_of(answer)["code"] == "not_found"


def test_only_for_people_who_are_signed_in(service):
    attempt = service.running()
    assert service.anyone.get(f"/v1/jobs/{attempt.claim.job_id}/health").status_code == 401
