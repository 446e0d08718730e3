"""How attempts on several nodes end: one node's end is the end of all, and the cause is told."""

import pytest
from sqlalchemy import event

from powermean.contracts.api import JobState
from powermean.contracts.names import PORT_TAKEN
from server.db.session import database_now
from server.jobs import attempts
from server.jobs.events import lock_job
from tests.support.gangs import FAILED, LOST, claimed_long_ago, gang, held
from tests.support.service_driver import ServiceDriver, error_of, example_result


@pytest.mark.slow
def test_a_failure_of_any_node_is_the_attempts(service: ServiceDriver):
    first, second = gang(service)
    assert second.finish("failed", **FAILED).status_code == 204
    job = service.job(first.claim.job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.message) == ("out_of_memory", "node n2: no memory left")
    assert error_of(first.beat())["code"] == "fenced"
    assert held(service) == {"n1"}
    assert first.finish("failed", error={"code": "rank_lost", "message": "rank 1"}).status_code == 204
    assert held(service) == set()
    after = service.job(first.claim.job_id)
    assert after.error == job.error


@pytest.mark.parametrize("cause_is_first", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_the_cause_wins_over_what_followed_from_it(service: ServiceDriver, rank, cause_is_first):
    parts = gang(service, max_restarts=3)
    reports = [(parts[rank], FAILED), (parts[1 - rank], LOST)]
    for part, report in reports if cause_is_first else reversed(reports):
        assert part.finish("failed", **report).status_code == 204
    job = service.job(parts[0].claim.job_id)
    assert job.state is JobState.FAILED, "no other attempt can succeed"
    assert job.error is not None
    assert job.error.code == "out_of_memory"
    assert job.attempts[0].error == job.error
    assert held(service) == set()


def test_a_cause_that_may_pass_is_what_the_restart_says(service: ServiceDriver):
    first, second = gang(service)
    assert first.finish("failed", **LOST).status_code == 204
    assert "rank 1 on n2 is gone" in (service.job(first.claim.job_id).phase or "")
    killed = {"error": {"code": "trainer_killed", "message": "killed by SIGKILL"}, "retryable": True}
    assert second.finish("failed", **killed).status_code == 204
    job = service.job(first.claim.job_id)
    assert job.state is JobState.QUEUED
    assert job.phase == "restarting (1 of 1): node n2: killed by SIGKILL"


def test_a_cause_told_late_does_not_stop_the_next_attempt(service: ServiceDriver):
    first, second = gang(service)
    assert first.finish("failed", **LOST).status_code == 204
    claimed_long_ago(service, first.id)
    service.report("n2", running=())
    service.scheduler.turn()
    again = service.claim(f"{first.claim.job_id}.2")
    assert second.finish("failed", **FAILED).status_code == 204
    job = service.job(first.claim.job_id)
    assert job.state is JobState.RUNNING
    assert job.attempts[0].error is not None
    assert job.attempts[0].error.code == "out_of_memory"
    assert again.beat().status_code == 200


@pytest.mark.parametrize("outcome", ["checkpointed", "cancelled"])
def test_a_node_that_stops_unasked_takes_the_attempt_with_it(service: ServiceDriver, outcome):
    first, second = gang(service)
    assert second.finish(outcome, reason="its service was stopped").status_code == 204
    job = service.job(first.claim.job_id)
    assert job.state is JobState.QUEUED
    assert "node n2" in (job.attempts[0].reason or "")
    assert error_of(first.beat())["code"] == "fenced"
    assert held(service) == {"n1"}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pause", "cancel", "drain"])
@pytest.mark.parametrize("first_to_go", [0, 1])
def test_what_people_ask_for_reaches_all_nodes(service: ServiceDriver, how, first_to_go):
    parts = gang(service)
    job_id = parts[0].claim.job_id
    if how == "drain":
        service.person.post("/v1/nodes/n2/drain", json={"reason": "a new disk"}).raise_for_status()
        service.scheduler.turn()
    else:
        service.person.post(f"/v1/jobs/{job_id}/{how}").raise_for_status()
    order, outcome, state = {
        "pause": ("checkpoint_and_exit", "checkpointed", JobState.PAUSED),
        "cancel": ("cancel", "cancelled", JobState.CANCELLED),
        "drain": ("checkpoint_and_exit", "checkpointed", JobState.QUEUED),
    }[how]
    assert [part.beat().json()["order"] for part in parts] == [order] * 2
    assert parts[first_to_go].finish(outcome).status_code == 204
    if first_to_go == 1:
        assert service.job(job_id).state is JobState.RUNNING
        assert parts[0].beat().json()["order"] == order
        assert error_of(parts[1].beat())["code"] == "fenced"
    assert parts[1 - first_to_go].finish(outcome).status_code == 204
    job = service.job(job_id)
    assert (job.state, job.attempts[0].outcome) == (state, outcome)
    assert held(service) == set()


@pytest.mark.slow
@pytest.mark.parametrize("outcome", ["cancelled", "finished"])
def test_a_node_that_hears_of_the_end_has_not_failed(service: ServiceDriver, outcome):
    first, second = gang(service)
    if outcome == "cancelled":
        service.person.post(f"/v1/jobs/{first.claim.job_id}/cancel").raise_for_status()
    result = {"result": example_result(first.claim.job_id)} if outcome == "finished" else {}
    assert first.finish(outcome, **result).status_code == 204
    assert error_of(second.beat())["code"] == "fenced", "before it has heard of any order"
    assert second.finish("failed", **LOST).status_code == 204
    (attempt,) = service.job(first.claim.job_id).attempts
    assert [(node.outcome, node.error) for node in attempt.nodes] == [(outcome, None), ("stopped", None)]
    assert held(service) == set()


def test_a_node_that_stops_before_the_job_has_finished_early_takes_the_attempt_with_it(
    service: ServiceDriver,
):
    first, second = gang(service, max_restarts=0)
    with service.database.write() as session:
        job = lock_job(session, first.claim.job_id)
        attempts.order_by_rule(session, job, "finish", "it has used its tokens", database_now(session))
    assert first.beat().json()["order"] == "finish"
    assert second.finish("checkpointed", reason="its service was stopped").status_code == 204
    assert error_of(first.beat())["code"] == "fenced"
    assert service.job(first.claim.job_id).state is JobState.QUEUED, "it is no restart"


def test_a_taken_port_is_no_restart(service: ServiceDriver):
    first, _ = gang(service, max_restarts=0)
    error = {"code": PORT_TAKEN, "message": "Port 29500 of 10.0.0.1 is taken"}
    assert first.finish("failed", error=error, retryable=True).status_code == 204
    job = service.job(first.claim.job_id)
    assert (job.state, job.phase) == (JobState.QUEUED, error["message"])
    assert job.attempts[0].error is not None
    service.report("n2", running=())
    service.scheduler.turn()
    assert service.job(first.claim.job_id).attempt == 1, "it waits for a while"


@pytest.mark.slow
def test_nodes_of_many_attempts_are_read_at_once(service: ServiceDriver):
    first, _ = gang(service, max_restarts=0)
    asked: list[str] = []
    event.listen(service.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    def shown() -> tuple[int, int]:
        asked.clear()
        found = service.job(first.claim.job_id).attempts
        assert all(len(one.nodes) == 2 for one in found)
        return len(found), sum("attempt_members" in one for one in asked)

    assert shown() == (1, 1)
    first.finish("checkpointed")
    claimed_long_ago(service, first.id)
    service.report("n2", running=())
    service.scheduler.turn()
    assert shown() == (2, 1)
