"""Jobs that are paused, resumed, or give way: where they end up, and what their history says."""

from typing import Any

import pytest

from powermean.contracts.api import JobState
from server.db.session import database_now
from server.jobs.attempts import order_stop
from server.jobs.events import lock_job
from tests.support.reports import post_rows, row
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of, example_result, example_spec

REASON = "preempted by job-17 (priority high)"
KILLED = {"code": "trainer_killed", "message": "The trainer was killed by signal 9."}


def ask(service: ServiceDriver, job_id: str, what: str, status: int = 200) -> dict[str, Any]:
    answer = service.person.post(f"/v1/jobs/{job_id}/{what}")
    assert answer.status_code == status, answer.text
    found: dict[str, Any] = answer.json() if status == 200 else error_of(answer)
    return found


def paused(service: ServiceDriver) -> tuple[AttemptDriver, str]:
    """A running job that is ordered to pause."""
    attempt = service.running()
    ask(service, attempt.claim.job_id, "pause")
    return attempt, attempt.claim.job_id


def give_way(service: ServiceDriver, job_id: str, reason: str = REASON) -> None:
    with service.database.write() as session:
        order_stop(session, lock_job(session, job_id), reason, database_now(session))


def resumed(service: ServiceDriver, job_id: str) -> AttemptDriver:
    ask(service, job_id, "resume")
    service.scheduler.turn()
    return service.claim(f"{job_id}.{service.job(job_id).attempt}")


@pytest.mark.slow
def test_a_pause_is_an_order_to_the_attempt_and_then_frees_its_place(service: ServiceDriver):
    attempt, job_id = paused(service)
    assert attempt.beat().json()["order"] == "checkpoint_and_exit"
    job = service.job(job_id)
    assert (job.state, job.pause_requested) == (JobState.RUNNING, True)
    assert attempt.commit(3).status_code == 204
    assert attempt.finish("checkpointed").status_code == 204
    job = service.job(job_id)
    assert (job.state, job.pause_requested, job.phase) == (JobState.PAUSED, False, "paused by administrator")
    (ended,) = job.attempts
    assert (ended.order_cause, ended.order_reason) == ("paused", "paused by administrator")
    assert (ended.outcome, ended.reason, ended.error) == ("checkpointed", "paused by administrator", None)
    assert ended.ordered_at is not None
    assert ended.freed_at is not None
    assert ended.ordered_at <= ended.freed_at == ended.ended_at
    other = service.queued()
    service.scheduler.turn()
    assert service.job(other).state is JobState.STARTING
    assert service.job(job_id).state is JobState.PAUSED


@pytest.mark.slow
def test_a_resumed_job_goes_on_from_its_last_checkpoint(service: ServiceDriver):
    attempt, job_id = paused(service)
    post_rows(attempt, row(1), row(2), row(3))
    attempt.commit(2)
    attempt.finish("checkpointed")
    second = resumed(service, job_id)
    assert second.claim.resume is not None
    assert second.claim.resume.step == 2
    assert service.job(job_id).attempts[1].first_step == 3
    post_rows(second, row(3, value=0.75), row(4))
    found = service.person.get(f"/v1/jobs/{job_id}/metrics?name=reward").json()["series"][0]["points"]
    assert [(point["step"], point["value"]) for point in found] == [(1, 0.5), (2, 0.5), (3, 0.75), (4, 0.5)]


@pytest.mark.slow
@pytest.mark.parametrize(
    "end",
    [
        {"outcome": "checkpointed", "reason": "it did not stop in time when it was ordered to"},
        {"outcome": "failed", "retryable": True, "error": KILLED},
        {"outcome": "cancelled"},
    ],
)
@pytest.mark.parametrize("pauses", [True, False])
def test_however_it_leaves_that_is_no_restart_and_no_error(
    service: ServiceDriver, end: dict[str, Any], pauses: bool
):
    attempt = service.running(max_restarts=0)
    job_id = attempt.claim.job_id
    if pauses:
        ask(service, job_id, "pause")
    else:
        give_way(service, job_id)
    for _ in range(2):  # the first answer may be lost
        assert attempt.finish(**end).status_code == 204
    job = service.job(job_id)
    assert job.state is (JobState.PAUSED if pauses else JobState.QUEUED)
    assert (job.error, job.attempts[0].error) == (None, None)
    assert job.preemptions == (0 if pauses else 1)
    told = end.get("reason") or end.get("error", {}).get("message")
    cause = "paused by administrator" if pauses else REASON
    assert job.attempts[0].reason == (f"{cause}; {told}" if told else cause)
    assert cause in str(job.phase)


@pytest.mark.slow
def test_an_attempt_that_falls_silent_after_the_order_is_paused_too(service: ServiceDriver):
    attempt, job_id = paused(service)
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    job = service.job(job_id)
    assert (job.state, job.error, job.attempts[0].error) == (JobState.PAUSED, None, None)
    assert "stopped sending heartbeats" in str(job.attempts[0].reason)
    assert job.attempts[0].freed_at is None  # until its node says that its processes are gone
    service.report()
    assert service.job(job_id).attempts[0].freed_at is not None


def test_an_error_that_would_come_again_fails_the_job_all_the_same(service: ServiceDriver):
    attempt, job_id = paused(service)
    attempt.finish("failed", error={"code": "out_of_memory", "message": "too big"})
    job = service.job(job_id)
    assert (job.state, job.pause_requested) == (JobState.FAILED, False)


def test_a_trainer_that_was_about_to_finish_finishes(service: ServiceDriver):
    attempt, job_id = paused(service)
    attempt.finish("finished", result=example_result(job_id))
    assert service.job(job_id).state is JobState.FINISHED


@pytest.mark.slow
def test_what_does_not_run_is_paused_at_once(service: ServiceDriver):
    queued, started = service.queued(), service.queued()
    service.report(cpu_slots=1)
    service.scheduler.turn()
    queued, started = started, queued
    assert service.job(started).state is JobState.STARTING
    for job_id in (queued, started):
        assert ask(service, job_id, "pause")["state"] == "paused"
        assert ask(service, job_id, "pause")["phase"] == "paused by administrator"
    assert service.node.post(f"/v1/attempts/{started}.1/claim").status_code == 409
    service.scheduler.turn()
    assert service.job(queued).state is JobState.PAUSED
    assert ask(service, queued, "resume")["state"] == "queued"
    service.scheduler.turn()
    assert service.job(queued).state is JobState.STARTING


def test_a_spec_is_checked_before_its_job_is_paused(service: ServiceDriver):
    good, bad, back = service.submit(), service.submit(), service.submit()
    for job_id in (good, bad, back):
        answer = ask(service, job_id, "pause")
        assert (answer["state"], answer["pause_requested"]) == ("validating", True)
    assert not ask(service, back, "resume")["pause_requested"]
    service.validate(good)
    service.validate(back)
    service.validate(bad, {"code": "unknown_model", "message": "no such model"})
    states = [service.job(job_id).state for job_id in (good, back, bad)]
    assert states == [JobState.PAUSED, JobState.QUEUED, JobState.FAILED]


def test_a_pause_that_is_taken_back_queues_the_job_again(service: ServiceDriver):
    attempt, job_id = paused(service)
    assert not ask(service, job_id, "resume")["pause_requested"]
    attempt.finish("checkpointed")
    job = service.job(job_id)
    assert (job.state, job.preemptions) == (JobState.QUEUED, 0)


@pytest.mark.slow
def test_repeats_have_no_effect(service: ServiceDriver):
    attempt, job_id = paused(service)
    before = ask(service, job_id, "pause")
    assert ask(service, job_id, "pause") == before
    attempt.finish("checkpointed")
    before = ask(service, job_id, "resume")
    assert ask(service, job_id, "resume") == before


@pytest.mark.slow
def test_a_job_that_is_ending_is_not_paused(service: ServiceDriver):
    attempt = service.running()
    job_id = attempt.claim.job_id
    ask(service, job_id, "cancel")
    for verb in ("pause", "resume"):
        assert "is being cancelled" in ask(service, job_id, verb, 409)["message"]
    attempt.finish("cancelled")
    assert "has ended (cancelled)" in ask(service, job_id, "pause", 409)["message"]
    assert "has ended (cancelled)" in ask(service, job_id, "resume", 409)["message"]


@pytest.mark.slow
def test_a_paused_job_is_cancelled_at_once_and_a_pausing_one_in_its_place(service: ServiceDriver):
    attempt, job_id = paused(service)
    ask(service, job_id, "cancel")
    assert attempt.beat().json()["order"] == "cancel"
    attempt.finish("checkpointed")
    assert service.job(job_id).state is JobState.CANCELLED
    assert service.job(job_id).attempts[0].order_cause == "cancelled"
    waiting = service.queued()
    ask(service, waiting, "pause")
    assert "only an ended job" in error_of(service.person.delete(f"/v1/jobs/{waiting}"))["message"]
    assert ask(service, waiting, "cancel")["state"] == "cancelled"
    assert service.person.delete(f"/v1/jobs/{waiting}").status_code == 204


@pytest.mark.slow
def test_the_first_reason_stays_and_a_pause_on_top_of_it_pauses(service: ServiceDriver):
    attempt = service.running()
    job_id = attempt.claim.job_id
    give_way(service, job_id)
    give_way(service, job_id, "node n3 is drained")
    assert service.job(job_id).attempts[0].order_reason == REASON
    ask(service, job_id, "pause")
    attempt.finish("checkpointed")
    job = service.job(job_id)
    assert (job.state, job.attempts[0].reason) == (JobState.PAUSED, REASON)


def test_who_gives_way_before_it_was_claimed_is_queued_at_once(service: ServiceDriver):
    job_id = service.started()
    give_way(service, job_id)
    job = service.job(job_id)
    assert (job.state, job.preemptions, job.attempts[0].reason) == (JobState.QUEUED, 1, REASON)
    assert service.node.post(f"/v1/attempts/{job_id}.1/claim").status_code == 409


def test_followers_are_told_of_the_order_and_of_the_pause(service: ServiceDriver):
    attempt, job_id = paused(service)
    attempt.finish("checkpointed")
    told = [event.data for event in service.events(job_id) if event.kind == "state"]
    assert [(one["state"], one["pause_requested"]) for one in told[-2:]] == [
        ("running", True),
        ("paused", False),
    ]
    assert told[-1]["phase"] == "paused by administrator"


def test_members_pause_their_own_jobs_and_the_log_says_who(service: ServiceDriver):
    ada, bob = service.someone(name="Ada"), service.someone(name="Bob")
    job_id = ada.post("/v1/jobs", json=example_spec()).json()["id"]
    assert bob.post(f"/v1/jobs/{job_id}/pause").status_code == 403
    assert ada.post(f"/v1/jobs/{job_id}/pause").status_code == 200
    service.app.state.journal.seal()
    found = service.person.get("/v1/audit?limit=5").json()["items"]
    assert ("Ada", "POST /v1/jobs/{job_id}/pause", job_id) in [
        (one["actor_name"], one["request"], one["target"]) for one in found
    ]
