"""A pilot from its order to its end: what its engine's word means for its node and its jobs."""

from dataclasses import replace
from datetime import timedelta

import pytest

from powermean.contracts.api import JobState
from server.cluster import pilots
from server.db.session import database_now
from server.nodes import NodeNameTakenError
from server.pools.backend import PilotState
from server.settings import Settings
from tests.support.elastic import Elastic, elastic_of
from tests.support.service_driver import ServiceDriver, error_of

pytestmark = pytest.mark.slow


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Ten seconds of a node are of use to a job."""
    return settings.model_copy(update={"min_run_s": 10.0})


def test_of_two_that_one_order_started_one_goes(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.submit(elastic.engine.orders[0])
    elastic.turn()
    assert elastic.engine.cancelled == ["2"]
    elastic.turn()  # an engine goes on listing what it has ended
    assert (elastic.pilots[0].external_id, elastic.pilots[0].state) == ("1", "pending")
    assert elastic.engine.cancelled == ["2"]
    elastic.engine.end("1", "TIMEOUT")
    elastic.turn()
    assert elastic.pilots[0].state == "ended"


def test_one_that_comes_back_after_it_was_given_up_is_ended_and_a_stranger_is_not(elastic: Elastic):
    attempt = elastic.running()
    there = elastic.engine.pilots.pop("1")
    elastic.turn()
    elastic.turn()
    assert elastic.pilots[0].state == "ended"
    elastic.engine.pilots["1"] = there
    elastic.engine.pilots["99"] = replace(there, pilot_id="cpu-ffffffff", external_id="99")
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    assert error_of(attempt.beat())["code"] == "fenced"


@pytest.mark.parametrize("reason", ["TIMEOUT", "CANCELLED", "PREEMPTED"])
def test_a_revoked_allocation_frees_at_once_and_costs_no_restart(elastic: Elastic, reason: str):
    attempt = elastic.running()
    elastic.engine.end("1", reason, revoked=True)
    elastic.turn()
    job = elastic.job(attempt.claim.job_id)
    assert (job.state, elastic.restarts(job.id)) == (JobState.QUEUED, 0)
    told = job.attempts[0]
    assert (told.outcome, told.error.code) == ("lapsed", "node_gone")
    assert told.error.message == f"pool cpu: Slurm's 1 ended: {reason}"
    assert error_of(attempt.beat())["code"] == "fenced"
    assert [node["id"] for node in elastic.service.person.get("/v1/nodes").json()["items"]] == []
    assert elastic.report().status_code == 401
    assert len(elastic.engine.orders) == 2  # for the job, which waits again


def test_a_node_that_failed_counts_as_a_restart(elastic: Elastic):
    attempt = elastic.running()
    elastic.engine.end("1", "NODE_FAIL")
    elastic.turn()
    assert elastic.restarts(attempt.claim.job_id) == 1


def test_a_pilot_is_gone_when_its_engine_has_left_it_out_twice(elastic: Elastic):
    attempt = elastic.running()
    del elastic.engine.pilots["1"]
    elastic.turn()
    assert elastic.job(attempt.claim.job_id).state is JobState.RUNNING
    elastic.turn()
    assert "does not know it any more" in elastic.job(attempt.claim.job_id).attempts[0].error.message


def test_what_its_engine_was_ending_costs_no_restart_when_it_is_gone(elastic: Elastic):
    attempt = elastic.running()
    elastic.engine.pilots["1"] = replace(elastic.engine.pilots["1"], reason="Deleted", revoked=True)
    elastic.turn()
    del elastic.engine.pilots["1"]
    elastic.turn()
    elastic.turn()
    told = elastic.job(attempt.claim.job_id).attempts[0]
    assert told.outcome == "lapsed"
    assert (told.reason or "").endswith("does not know it any more; before: Deleted")
    assert elastic.restarts(attempt.claim.job_id) == 0


def test_nothing_starts_on_a_node_that_was_let_go_before_it_reported(elastic: Elastic):
    job_id = elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    elastic.later(started_at=601)
    elastic.turn()
    elastic.engine.run("1")  # its engine takes a while to end it
    assert elastic.report().status_code == 200
    elastic.turn()
    assert elastic.job(job_id).state is JobState.QUEUED


def test_a_worker_that_does_not_report_in_time_is_ended(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    elastic.later(started_at=601)
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    elastic.turn()
    assert elastic.pilots[0].failed
    assert elastic.pilots[0].reason == "its worker did not report within 600 s"


@pytest.mark.parametrize("refused", [False, True])
def test_one_that_its_engine_never_starts_is_given_up(service: ServiceDriver, refused: bool):
    elastic = elastic_of(service, pending_deadline_s=86_400)
    elastic.engine.refuses = "sbatch: no" if refused else None
    job_id = elastic.queued()
    elastic.turn()
    elastic.later(created_at=86_401)
    elastic.turn()
    said = "Slurm has not started it within 86400 s" + ("" if refused else " (Slurm: Priority)")
    for _ in range(2):  # what was never confirmed is left out of two lists
        elastic.turn()
    (pilot,) = elastic.pilots
    assert (pilot.failed, pilot.state, pilot.reason) == (True, "ended", said)
    shown = "sbatch: no" if refused else said
    assert shown in (elastic.error or "")
    assert shown in (elastic.job(job_id).phase or "")


def test_a_pilot_that_its_engine_starts_again_has_the_whole_time_to_report(service: ServiceDriver):
    elastic = elastic_of(service, pending_deadline_s=700)
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    elastic.later(created_at=86_400, started_at=601)
    elastic.engine.pilots["1"] = replace(elastic.engine.pilots["1"], state=PilotState.PENDING)
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    assert elastic.engine.cancelled == []


def test_a_node_with_less_than_its_shape_is_let_go(service: ServiceDriver):
    elastic = elastic_of(service, shape={"gpus": 1, "gpu_type": "H100"})
    elastic.queued(resources={"gpus": 1, "gpu_type": "H100"})
    elastic.turn()
    elastic.engine.run("1")
    elastic.report(gpus=[{"uuid": "g", "name": "NVIDIA A100", "memory_mb": 80_000}])
    elastic.turn()
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    assert elastic.pilots[0].reason == "its node has 0 GPUs called H100 as shape says, instead of 1"
    assert len(elastic.engine.orders) == 1


def test_a_time_that_is_too_short_for_any_job_is_a_failure(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    with elastic.service.database.read() as session:
        now = database_now(session)
    elastic.engine.run("1", ends_at=now + timedelta(seconds=105))
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    elastic.turn()
    assert "too short" in elastic.pilots[0].reason
    assert len(elastic.engine.orders) == 1


def test_only_its_own_token_uses_a_pilot_s_name(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    name = elastic.engine.orders[0].node_id
    body = {"hostname": "x", "instance": "another", "version": "0", "labels": {"pool": "cpu"}}
    refused = elastic.service.node.put(f"/v1/nodes/{name}", json=body)
    assert (refused.status_code, error_of(refused)["code"]) == (409, "node_name_taken")
    assert elastic.report().status_code == 200


def test_a_report_that_comes_after_the_end_brings_no_node_back(elastic: Elastic):
    elastic.running()
    elastic.engine.end("1", "TIMEOUT", revoked=True)
    elastic.turn()
    name = elastic.engine.orders[0].node_id
    with elastic.service.database.read() as session, pytest.raises(NodeNameTakenError, match="has ended"):
        pilots.check_owner(session, name, bound=name)
