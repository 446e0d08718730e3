"""How attempts end, over REST: what the job becomes, whether it is tried again, and the cause shown."""

import pytest

from powermean.contracts.api import JobState
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of, example_result


@pytest.mark.slow
def test_a_finished_job(service: ServiceDriver):
    attempt = service.running()
    for _ in range(2):  # the first answer may be lost
        assert attempt.finish("finished", result=example_result(attempt.claim.job_id)).status_code == 204
    job = service.job(attempt.claim.job_id)
    assert job.state is JobState.FINISHED
    assert job.result is not None
    assert job.result.reward_after == 0.8
    assert (job.step, job.attempts[0].state) == (20, "ended")
    assert attempt.beat().status_code == 409
    assert service.person.post(f"/v1/jobs/{job.id}/cancel").json()["state"] == "finished"


def test_a_job_that_trained_no_step_has_failed(service: ServiceDriver):
    attempt = service.running()
    assert attempt.finish("finished").status_code == 204
    job = service.job(attempt.claim.job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "no_steps"
    assert attempt.finish("finished", result=example_result(attempt.claim.job_id, 0)).status_code == 422


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_result_with_more_steps_than_the_job_has_is_refused(service: ServiceDriver):
    attempt = service.running()
    answer = attempt.finish("finished", result=example_result(attempt.claim.job_id, 21))
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "result.steps"


def fail(attempt: AttemptDriver, retryable: bool = True) -> None:
    error = {"code": "trainer_killed", "message": "the trainer was killed by signal 9"}
    assert attempt.finish("failed", retryable=retryable, error=error).status_code == 204


def next_attempt(service: ServiceDriver, attempt: AttemptDriver) -> AttemptDriver:
    service.scheduler.turn()
    return service.claim(f"{attempt.claim.job_id}.{attempt.claim.number + 1}")


@pytest.mark.slow
def test_restarts_end_at_the_limit_with_the_reason(service: ServiceDriver):
    attempt = service.running(max_restarts=2)
    for _ in range(2):
        fail(attempt)
        job = service.job(attempt.claim.job_id)
        assert job.state is JobState.QUEUED
        assert "killed by signal 9" in str(job.phase)
        attempt = next_attempt(service, attempt)
    fail(attempt)
    job = service.job(attempt.claim.job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.code == "trainer_killed"
    assert "gave up after 2 restarts" in job.error.message
    assert len(job.attempts) == 3


@pytest.mark.slow
def test_progress_earns_new_restarts(service: ServiceDriver):
    attempt = service.running(max_restarts=1)
    for step in range(1, 5):
        attempt.commit(step)
        fail(attempt)
        attempt = next_attempt(service, attempt)
    assert attempt.claim.number == 5
    attempt.commit(4)  # no progress: this is where it went on
    fail(attempt)
    assert service.job(attempt.claim.job_id).state is JobState.FAILED


def test_a_failure_of_its_own_making_is_not_tried_again(service: ServiceDriver):
    attempt = service.running()
    fail(attempt, retryable=False)
    job = service.job(attempt.claim.job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.message == "the trainer was killed by signal 9"


def test_a_checkpointed_attempt_goes_on_elsewhere_without_using_up_a_restart(service: ServiceDriver):
    attempt = service.running(max_restarts=0)
    attempt.commit(3)
    assert attempt.finish("checkpointed").status_code == 204
    attempt = next_attempt(service, attempt)
    assert attempt.claim.resume is not None
    assert attempt.claim.resume.step == 3


@pytest.mark.parametrize("outcome", ["failed", "checkpointed", "cancelled"])
def test_a_cancelled_job_is_cancelled_however_its_attempt_ends(service: ServiceDriver, outcome):
    attempt = service.running()
    service.person.post(f"/v1/jobs/{attempt.claim.job_id}/cancel")
    attempt.finish(outcome, retryable=True)
    assert service.job(attempt.claim.job_id).state is JobState.CANCELLED


def test_a_cancelled_job_whose_attempt_falls_silent_is_cancelled(service: ServiceDriver):
    attempt = service.running()
    service.person.post(f"/v1/jobs/{attempt.claim.job_id}/cancel")
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert service.job(attempt.claim.job_id).state is JobState.CANCELLED


ENDS = [
    ({"outcome": "failed", "error": {"code": "x", "message": "no memory"}}, "failed", "no memory"),
    ({"outcome": "failed"}, "failed", "the attempt failed without giving a reason; its log may say more"),
    ({"outcome": "checkpointed", "reason": "its node was stopped"}, "checkpointed", "its node was stopped"),
    ({"outcome": "checkpointed"}, "checkpointed", "it stopped at a checkpoint, as ordered"),
    ({"outcome": "cancelled"}, "cancelled", "the attempt was stopped on its node, not by an order"),
]


@pytest.mark.parametrize(("report", "outcome", "reason"), ENDS)
def test_every_end_names_its_cause(service: ServiceDriver, report, outcome, reason):
    attempt = service.running()
    attempt.post("finish", report)
    ended = service.job(attempt.claim.job_id).attempts[0]
    assert (ended.outcome, ended.reason) == (outcome, reason)


def test_an_attempt_that_was_ordered_to_cancel_has_no_error(service: ServiceDriver):
    attempt = service.running()
    service.person.post(f"/v1/jobs/{attempt.claim.job_id}/cancel")
    attempt.finish("cancelled")
    job = service.job(attempt.claim.job_id)
    ended = job.attempts[0]
    assert (job.error, ended.error) == (None, None)
    assert (ended.outcome, ended.reason) == ("cancelled", "the job was cancelled")


@pytest.mark.slow
def test_an_end_without_a_report_names_its_cause(service: ServiceDriver):
    withdrawn = service.started()
    service.person.post(f"/v1/jobs/{withdrawn}/cancel")
    assert service.job(withdrawn).attempts[0].reason == "the job was cancelled"
    attempt = service.running()
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    lapsed = service.job(attempt.claim.job_id).attempts[0]
    assert (lapsed.outcome, lapsed.reason) == ("lapsed", "attempt 1 stopped sending heartbeats")
