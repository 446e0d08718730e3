"""Limits that the leader judges, over all attempts, and what becomes of the job."""

import re
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, select

from powermean.contracts.api import JobState
from powermean.contracts.phases import EVALUATING, SAVING_MODEL, SENDING_RECORDS, in_step
from server.cluster.leadership import SCHEDULER
from server.cluster.scheduler import NEVER
from server.db.models import Attempt, JobEvent, Leader
from server.db.session import database_now
from server.jobs import limits
from server.jobs.limits import STALL_FLOOR_S
from tests.support.reports import post_rows, row, trajectory
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of, example_result

HOUR_S = 3600.0


def earlier(service: ServiceDriver, job_id: str, seconds: float) -> None:
    """As if all that is known of the job's attempts and steps had happened so much earlier.

    There was a server already then.
    """
    by = timedelta(seconds=seconds)
    with service.database.write() as session:
        leader = session.get_one(Leader, SCHEDULER)
        leader.served_since = (leader.served_since or leader.expires_at) - by
        for attempt in session.scalars(select(Attempt).where(Attempt.job_id == job_id)):
            for name in ("created_at", "claimed_at", "ended_at"):
                if (at := getattr(attempt, name)) is not None:
                    setattr(attempt, name, at - by)
            for part in attempt.allocations:
                part.released_at = part.released_at - by if part.released_at else None
        for told in session.scalars(select(JobEvent).where(JobEvent.job_id == job_id)):
            told.created_at -= by


def look(service: ServiceDriver) -> None:
    service.scheduler.limits_at = float("-inf")
    service.scheduler.turn()


def limited(service: ServiceDriver, **given: Any) -> AttemptDriver:
    return service.running(limits=given)


def order(attempt: AttemptDriver) -> str:
    return str(attempt.beat().json()["order"])


@pytest.mark.slow
def test_hours_of_running_count_over_attempts_and_waiting_is_free(service: ServiceDriver):
    attempt = limited(service, wall_hours=2.0)
    job_id = attempt.claim.job_id
    earlier(service, job_id, 1.5 * HOUR_S)
    look(service)
    assert order(attempt) == "continue"
    service.person.post(f"/v1/jobs/{job_id}/pause")
    attempt.commit(3)
    attempt.finish("checkpointed")
    earlier(service, job_id, 10 * HOUR_S)  # paused for so long
    service.person.post(f"/v1/jobs/{job_id}/resume")
    service.scheduler.turn()
    second = service.claim(f"{job_id}.2")
    look(service)
    assert order(second) == "continue"
    earlier(service, job_id, 0.6 * HOUR_S)
    look(service)
    assert order(second) == "finish"
    second.finish("finished", result=example_result(job_id, 4))
    job = service.job(job_id)
    assert (job.state, job.step, job.total_steps) == (JobState.FINISHED, 4, 20)
    assert job.ended_by == "limits.wall_hours: 2.1 of 2 hours"
    assert job.attempts[1].order_cause == "limit"
    assert service.person.get("/v1/jobs").json()["items"][0]["ended_by"] == job.ended_by


def test_gpu_hours_are_hours_times_gpus_until_they_are_free(service: ServiceDriver):
    job_id = service.queued(resources={"gpus": 1}, limits={"gpu_hours": 1.0})
    service.report(gpus=2)
    service.scheduler.turn()
    attempt = service.claim(f"{job_id}.1")
    earlier(service, job_id, 0.9 * HOUR_S)
    look(service)
    assert order(attempt) == "continue"
    earlier(service, job_id, 5 * HOUR_S)  # the database's clock has been set, and stays so
    assert attempt.beat(ran_s=0.9 * HOUR_S).status_code == 200
    look(service)
    assert order(attempt) == "continue"
    assert attempt.beat(ran_s=1.1 * HOUR_S).status_code == 200
    look(service)
    assert order(attempt) == "finish"
    assert service.job(job_id).attempts[0].order_reason == "limits.gpu_hours: 1.1 of 1 GPU-hours"


def test_gpus_that_are_held_while_nobody_hears_of_it_count(service: ServiceDriver):
    job_id = service.queued(resources={"gpus": 1}, limits={"gpu_hours": 1.0})
    service.report(gpus=2)
    service.scheduler.turn()
    attempt = service.claim(f"{job_id}.1")
    earlier(service, job_id, HOUR_S + 1)
    assert attempt.beat(ran_s=HOUR_S - 0.5 * service.settings.lease_s).status_code == 200
    look(service)
    assert order(attempt) == "finish"


def test_a_job_that_has_reached_a_limit_is_neither_paused_nor_sent_away(service: ServiceDriver):
    attempt = limited(service, wall_hours=1.0)
    job_id = attempt.claim.job_id
    assert attempt.beat(ran_s=1e300).status_code == 422, "no interval holds it"
    earlier(service, job_id, 2 * HOUR_S)
    look(service)
    answer = service.person.post(f"/v1/jobs/{job_id}/pause")
    assert (answer.status_code, error_of(answer)["message"]) == (
        409,
        f"job {job_id} has reached a limit and is finishing: it can't be paused",
    )
    assert error_of(answer)["remedy"]
    service.person.post(f"/v1/jobs/{job_id}/cancel")
    assert order(attempt) == "cancel"


def test_a_trainer_that_does_not_finish_in_time_fails_the_job_and_the_limit_is_told(service: ServiceDriver):
    attempt = limited(service, wall_hours=1.0)
    job_id = attempt.claim.job_id
    earlier(service, job_id, 2 * HOUR_S)
    look(service)
    attempt.finish("failed", error={"code": "finish_timed_out", "message": "It did not finish in time."})
    job = service.job(job_id)
    assert (job.state, job.error and job.error.code) == (JobState.FAILED, "finish_timed_out")
    assert job.ended_by == "limits.wall_hours: 2 of 1 hours"


@pytest.mark.slow
def test_an_accident_after_the_order_is_tried_again_and_ordered_again(service: ServiceDriver):
    attempt = limited(service, wall_hours=1.0)
    job_id = attempt.claim.job_id
    earlier(service, job_id, 2 * HOUR_S)
    look(service)
    attempt.finish("failed", retryable=True, error={"code": "trainer_killed", "message": "killed"})
    service.scheduler.turn()
    second = service.claim(f"{job_id}.2")
    look(service)
    assert order(second) == "finish"


def test_what_the_trainer_judged_is_told_in_its_words(service: ServiceDriver):
    attempt = limited(service, stop_when="eval/reward >= 0.9 for 3")
    job_id, rule = attempt.claim.job_id, "limits.stop_when: eval/reward >= 0.9 for 3, at step 4"
    attempt.finish("finished", result=example_result(job_id, 4), ended_by=rule)
    job = service.job(job_id)
    assert (job.ended_by, job.attempts[0].reason) == (rule, rule)


def steps(attempt: AttemptDriver, *numbers: int, seconds: float = 100.0) -> None:
    for step in numbers:
        post_rows(attempt, row(step), row(step, "time/step", seconds))
        assert attempt.post("trajectories", {"step": step, "rows": [trajectory(0)]}).status_code == 204


@pytest.mark.slow
def test_an_attempt_without_a_step_for_long_is_ended_and_tried_again(service: ServiceDriver):
    attempt = limited(service, stall_factor=10.0)
    job_id = attempt.claim.job_id
    earlier(service, job_id, 5000)  # before its first step it may load whatever it needs
    look(service)
    assert order(attempt) == "continue"
    steps(attempt, 1, 2, 3)
    earlier(service, job_id, 900)
    look(service)
    assert order(attempt) == "continue"
    earlier(service, job_id, 200)
    look(service)
    assert order(attempt) == "cancel"
    attempt.finish("cancelled")
    job = service.job(job_id)
    assert job.state is JobState.QUEUED
    error = job.attempts[0].error
    assert error is not None
    assert (error.code, job.attempts[0].order_cause) == ("stalled", "stalled")
    assert re.match(
        r"limits\.stall_factor: no step for 11\d\d s, and the limit is 10 times 100 s", error.message
    )
    service.scheduler.turn()
    second = service.claim(f"{job_id}.2")
    look(service)
    assert order(second) == "continue", "the steps of the first one are not its own"


@pytest.mark.slow
def test_short_steps_are_not_held_against_a_job_before_the_floor(service: ServiceDriver):
    attempt = limited(service, stall_factor=2.0)
    steps(attempt, 1, 2, seconds=0.1)
    earlier(service, attempt.claim.job_id, STALL_FLOOR_S + service.settings.lease_s - 10)
    look(service)
    assert order(attempt) == "continue"
    earlier(service, attempt.claim.job_id, 20)
    look(service)
    assert order(attempt) == "cancel"


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        (20, in_step(20, 20, EVALUATING)),
        (4, SAVING_MODEL),  # it has reached a limit of its own
        (4, SENDING_RECORDS),
    ],
)
def test_no_step_is_expected_after_the_last_one(service: ServiceDriver, step: int, phase: str):
    attempt = limited(service, stall_factor=2.0)
    steps(attempt, step)
    attempt.beat(phase)
    earlier(service, attempt.claim.job_id, 1000)
    look(service)
    assert order(attempt) == "continue"


def test_steps_that_nobody_could_be_told_of_are_not_missed(service: ServiceDriver):
    attempt = limited(service, stall_factor=2.0)
    steps(attempt, 1)
    earlier(service, attempt.claim.job_id, 1000)
    with service.database.write() as session:  # no server was there for so long
        session.get_one(Leader, SCHEDULER).expires_at -= timedelta(seconds=1000)
    look(service)
    assert order(attempt) == "continue"
    earlier(service, attempt.claim.job_id, 1000)
    look(service)
    assert order(attempt) == "cancel"


def test_a_replica_that_takes_over_counts_on_from_where_the_other_stopped(service: ServiceDriver):
    attempt = limited(service, stall_factor=2.0)
    steps(attempt, 1)
    earlier(service, attempt.claim.job_id, 1000)
    service.scheduler.stop()
    service.replica("second").turn()
    assert order(attempt) == "cancel"


def test_a_node_may_have_been_unreachable_for_a_lease_before_it_sends_its_steps(service: ServiceDriver):
    attempt = limited(service, stall_factor=10.0)
    steps(attempt, 1)
    limit = 10 * 100 + service.settings.lease_s
    earlier(service, attempt.claim.job_id, limit - 10)
    look(service)
    assert order(attempt) == "continue"
    earlier(service, attempt.claim.job_id, 20)
    look(service)
    assert order(attempt) == "cancel"


def test_a_stalled_job_that_is_to_pause_pauses(service: ServiceDriver):
    attempt = limited(service, stall_factor=2.0)
    job_id = attempt.claim.job_id
    steps(attempt, 1)
    earlier(service, job_id, 1000)
    look(service)
    assert service.person.post(f"/v1/jobs/{job_id}/pause").status_code == 200
    attempt.finish("cancelled")
    assert service.job(job_id).state is JobState.PAUSED


def test_a_stalled_job_that_is_to_pause_pauses_although_its_node_is_silent(service: ServiceDriver):
    attempt = limited(service, stall_factor=2.0)
    job_id = attempt.claim.job_id
    steps(attempt, 1)
    earlier(service, job_id, 1000)
    look(service)
    assert service.person.post(f"/v1/jobs/{job_id}/pause").status_code == 200
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert service.job(job_id).state is JobState.PAUSED
    assert service.person.post(f"/v1/jobs/{job_id}/resume").status_code == 200
    assert service.job(job_id).state is JobState.QUEUED


def test_what_is_left_of_many_jobs_takes_no_parameter_for_each(service: ServiceDriver):
    attempt = limited(service, wall_hours=2.0)
    job_id = attempt.claim.job_id
    earlier(service, job_id, 0.5 * HOUR_S)
    attempt.finish("failed", retryable=True, error={"code": "trainer_killed", "message": "killed"})
    given: list[Any] = []
    with service.database.read() as session:
        session.connection()
        event.listen(service.database.engine, "before_cursor_execute", lambda *asked: given.append(asked[3]))
        alone = limits.wall_seconds(session, {job_id: {"wall_hours": 2.0}})
        many = {f"job-{n}": {"wall_hours": 1.0} for n in range(1000)} | {job_id: {"wall_hours": 2.0}}
        among = limits.wall_seconds(session, many)
    assert alone[job_id] == among[job_id] == pytest.approx(1.5 * HOUR_S, abs=10)
    assert (len(among), among["job-0"]) == (1001, HOUR_S)
    assert max(len(parameters) for parameters in given) < 10


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_limits_are_looked_at_every_few_seconds_and_only_where_there_are_any(service: ServiceDriver):
    plain = service.running()
    asked: list[str] = []
    event.listen(service.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    with service.database.read() as session:
        assert limits.reached(session, service.settings, NEVER, database_now(session)) == []
    assert len([one for one in asked if one.startswith("SELECT")]) == 1
    plain.finish("finished", result=example_result(plain.claim.job_id))
    attempt = limited(service, wall_hours=1.0)
    look(service)
    earlier(service, attempt.claim.job_id, 2 * HOUR_S)
    service.scheduler.turn()
    assert order(attempt) == "continue", "it was looked at a moment ago"
    look(service)
    assert order(attempt) == "finish"
