"""Attempts on several nodes: each claims, beats and ends for itself; the end of one is the end of all."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event, update

from powermean.cli.jobs import described
from powermean.contracts.api import JobState
from powermean.contracts.attempts import HeartbeatReply
from powermean.contracts.job import JobSpec
from server.cluster import sharing
from server.cluster.cleaner import Cleaner
from server.db.models import AttemptMember, Job, Leader
from server.db.session import database_now
from server.jobs import allocations, attempts
from server.jobs.attempts import NodeGone
from server.jobs.demand import Demand, demand_of, stored_demand
from server.jobs.hours import merged
from tests.support.gangs import FAILED, LOST, claimed_long_ago, gang, held, started_gang
from tests.support.service_driver import (
    ServiceDriver,
    error_of,
    example_result,
    example_spec,
)


@pytest.mark.slow
def test_each_node_is_told_and_claims_its_part_once(service: ServiceDriver):
    attempt_id = started_gang(service, 3)
    service.relay.turn()
    told = [queue for task, queue, subject in service.sender.sent if subject == attempt_id]
    assert len(set(told)) == 3

    def claim(node_id: str) -> int:
        return service.node.post(f"/v1/attempts/{attempt_id}/claim", json={"node_id": node_id}).status_code

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(claim, ["n1", "n2", "n3"] * 2))
    assert sorted(answers) == [200] * 3 + [409] * 3
    assert service.job(attempt_id.partition(".")[0]).state is JobState.RUNNING


def test_parts_say_who_they_are(service: ServiceDriver):
    first, second = gang(service)
    assert (first.claim.node_rank, second.claim.node_rank) == (0, 1)
    assert first.claim.allocations == second.claim.allocations
    assert [(part.role, part.node_id) for part in first.claim.allocations] == [
        ("trainer", "n1"),
        ("rollout", "n1"),
        ("trainer", "n2"),
        ("rollout", "n2"),
    ]


def test_a_node_repeats_its_claim_by_its_id_and_no_other_node_s(service: ServiceDriver):
    attempt_id = started_gang(service)

    def claim(node_id: str, key: str) -> int:
        path, headers = f"/v1/attempts/{attempt_id}/claim", {"Idempotency-Key": key}
        return service.node.post(path, json={"node_id": node_id}, headers=headers).status_code

    tries = [("n2", "a"), ("n2", "a"), ("n1", "b"), ("n1", "b"), ("n1", "a"), ("n2", "b")]
    assert [claim(*one) for one in tries] == [200, 200, 200, 200, 409, 409]


def test_a_node_without_a_part_claims_nothing(service: ServiceDriver):
    attempt_id = started_gang(service)
    service.report("n9")
    answer = service.node.post(f"/v1/attempts/{attempt_id}/claim", json={"node_id": "n9"})
    assert answer.status_code == 403
    assert service.claim(attempt_id).claim.node_rank == 0


def test_heartbeats_tell_nodes_of_each_other(service: ServiceDriver):
    first, second = gang(service)
    address = {"address": "10.0.0.1", "store_port": 29500, "engine_urls": ["http://10.0.0.1:1"]}
    assert first.beat("loading", member=address).status_code == 200
    reply = HeartbeatReply.model_validate(second.beat("waiting for n1").json())
    assert [member.node_id for member in reply.members] == ["n1", "n2"]
    assert reply.members[0].report is not None
    assert reply.members[0].report.store_port == 29500
    assert reply.members[1].report is None
    reply = HeartbeatReply.model_validate(first.beat("loading").json())
    assert reply.members[0].report is not None, "a heartbeat without an address leaves it"
    assert service.job(first.claim.job_id).phase == "loading"
    second.token = reply.token
    assert second.beat().status_code == 403, "a token is one node's"


@pytest.mark.slow
def test_a_node_that_falls_silent_ends_the_attempt_everywhere(service: ServiceDriver):
    first, second = gang(service)
    service.let_lease_run_out(first.id, "n2")
    service.scheduler.turn()
    job = service.job(first.claim.job_id)
    assert job.state is JobState.QUEUED
    error = job.attempts[0].error
    assert error is not None
    assert error.code == "lease_lapsed"
    assert "n2" in error.message
    assert "n1" not in error.message
    for part in (first, second):
        assert error_of(part.beat())["code"] == "fenced"
    assert held(service) == {"n1", "n2"}, "their processes may still be there"
    service.report("n1", running=())
    assert held(service) == {"n1", "n2"}, "a report from before the claim would say the same"
    claimed_long_ago(service, first.id)
    service.report("n1", running=())
    assert held(service) == {"n2"}


def test_one_heartbeat_does_not_speak_for_another_node(service: ServiceDriver):
    first, _ = gang(service)
    service.let_lease_run_out(first.id, "n2")
    assert first.beat().status_code == 200
    service.scheduler.turn()
    assert error_of(first.beat())["code"] == "fenced"


@pytest.mark.slow
def test_a_node_that_never_claims_is_named_and_the_job_tried_again(service: ServiceDriver):
    attempt_id = started_gang(service, max_restarts=0)
    first = service.claim(attempt_id, "n1")
    assert first.beat().status_code == 200
    service.let_lease_run_out(attempt_id, "n2")
    service.scheduler.turn()
    job = service.job(first.claim.job_id)
    assert job.state is JobState.QUEUED, "nothing failed in the job"
    error = job.attempts[0].error
    assert error is not None
    assert (error.code, "n2" in error.message) == ("gang_incomplete", True)
    assert error_of(first.beat())["code"] == "fenced"
    late = service.node.post(f"/v1/attempts/{attempt_id}/claim", json={"node_id": "n2"})
    assert error_of(late)["code"] == "fenced"
    assert held(service) == {"n1"}, "nothing runs where nobody claimed"
    assert first.finish("failed").status_code == 204
    assert held(service) == set()


def test_only_the_first_node_reports(service: ServiceDriver):
    first, second = gang(service)
    for what, body in (
        ("metrics", {"rows": [{"step": 1, "name": "reward", "value": 0.5}]}),
        ("trajectories", {"step": 1, "rows": []}),
        ("checkpoints", {}),
    ):
        assert error_of(second.post(what, body))["code"] == "not_first_node"
    result = example_result(first.claim.job_id)
    assert error_of(second.finish("finished", result=result))["code"] == "not_first_node"
    assert first.commit(5).status_code == 204


@pytest.mark.slow
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
def test_a_job_finishes_with_its_first_node_whoever_is_done_first(service: ServiceDriver, order):
    parts = gang(service, 3)
    left = {"n1", "n2", "n3"}
    for rank in order:
        result = {"result": example_result(parts[0].claim.job_id)} if rank == 0 else {}
        assert parts[rank].finish("finished", **result).status_code == 204
        left.remove(f"n{rank + 1}")
        assert held(service) == left
        ended = rank == 0 or service.job(parts[0].claim.job_id).state is JobState.FINISHED
        state = JobState.FINISHED if ended else JobState.RUNNING
        assert service.job(parts[0].claim.job_id).state is state
        assert parts[rank].finish("finished", **result).status_code == 204, "said again"
    assert service.job(parts[0].claim.job_id).state is JobState.FINISHED


@pytest.mark.slow
def test_a_drained_gang_keeps_its_place_and_waits_for_two_nodes(service: ServiceDriver):
    parts = gang(service)
    service.person.post("/v1/nodes/n2/drain", json={}).raise_for_status()
    service.scheduler.turn()
    for part in parts:
        part.finish("checkpointed")
    service.scheduler.turn()
    assert service.job(parts[0].claim.job_id).state is JobState.QUEUED
    service.report("n3")
    service.scheduler.turn()
    again = service.job(parts[0].claim.job_id).attempts[-1]
    assert {part.node_id for part in again.allocations} == {"n1", "n3"}


@pytest.mark.slow
def test_the_next_attempt_avoids_the_node_that_fell_silent_and_no_other(service: ServiceDriver):
    parts = gang(service)
    service.let_lease_run_out(parts[0].id, "n2")
    service.scheduler.turn()
    claimed_long_ago(service, parts[0].id)
    for node_id in ("n1", "n2", "n3"):
        service.report(node_id)
    service.scheduler.turn()
    again = service.job(parts[0].claim.job_id).attempts[-1]
    assert again.number == 2
    assert {part.node_id for part in again.allocations} == {"n1", "n3"}


@pytest.mark.slow
def test_a_new_leader_gives_each_node_a_full_period(service: ServiceDriver):
    attempt_id = started_gang(service, 3)
    first = service.claim(attempt_id, "n1")
    second = service.claim(attempt_id, "n2")
    assert second.finish("finished").status_code == 204
    service.let_lease_run_out(attempt_id, "n1", "n3")
    with service.database.write() as session:
        session.execute(update(Leader).values(expires_at=database_now(session) - timedelta(seconds=1)))
    service.replica("second").turn()
    with service.database.read() as session:
        now = database_now(session)
        ends = [one.lease_expires_at for one in session.query(AttemptMember).order_by("node_rank")]
    assert ends[1] is None, "nothing more is expected of it"
    assert all(end is not None and end > now for end in (ends[0], ends[2]))
    assert first.beat().status_code == 200
    assert service.claim(attempt_id, "n3").beat().status_code == 200


def test_nobody_claims(service: ServiceDriver):
    attempt_id = started_gang(service)
    service.let_lease_run_out(attempt_id, "n1", "n2")
    service.scheduler.turn()
    job = service.job(attempt_id.partition(".")[0])
    assert job.attempts[0].error is not None
    assert job.attempts[0].error.code == "not_claimed"
    assert "nodes n1, n2" in job.attempts[0].error.message


def test_one_node_needs_no_members(service: ServiceDriver):
    attempt = service.running()
    asked: list[str] = []
    event.listen(service.database.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))
    assert "members" not in attempt.beat().json()
    assert asked
    assert not [one for one in asked if "attempt_members" in one], "one node costs no statement more"
    assert attempt.beat(node_rank=1).status_code == 403
    with service.database.read() as session:
        assert session.query(AttemptMember).count() == 0


@pytest.mark.slow
def test_each_node_has_a_log_of_its_own(service: ServiceDriver):
    first, second = gang(service)

    def read(**which: int) -> Any:
        return service.person.get(f"/v1/jobs/{first.claim.job_id}/logs", params=which).json()

    assert first.post("logs", {"offset": 0, "text": "one"}).status_code == 204
    for _ in range(2):
        said = second.post("logs", {"offset": 0, "text": "second", "node_rank": 1})
        assert said.status_code == 204
    assert second.post("logs", {"offset": 9, "text": "x", "node_rank": 1}).status_code == 409
    assert second.post("logs", {"offset": 3, "text": "x"}).status_code == 403
    assert read()["text"] == "one"
    assert read(node_rank=1)["text"] == "second"
    assert read(node_rank=1, offset=3)["text"] == "ond"
    assert read(node_rank=1, offset=2**62)["text"] == ""
    assert read(node_rank=2)["error"]["code"] == "not_found"


@pytest.mark.slow
def test_last_words_count_until_the_node_is_done_or_the_job_has_started_again(service: ServiceDriver):
    first, second = gang(service)
    first.finish("failed", **LOST)
    words = {"offset": 0, "text": "killed by the kernel", "node_rank": 1}
    assert second.post("logs", words).status_code == 204
    assert error_of(first.post("logs", {"offset": 0, "text": "x"}))["code"] == "fenced"
    claimed_long_ago(service, first.id)
    service.report("n2", running=())
    service.scheduler.turn()
    assert error_of(second.post("logs", words | {"offset": 20}))["code"] == "fenced"


@pytest.mark.slow
def test_a_job_shows_how_its_nodes_do(service: ServiceDriver):
    attempt_id = started_gang(service)
    first = service.claim(attempt_id, "n1")
    first.finish("failed", **FAILED)
    (attempt,) = service.job(first.claim.job_id).attempts
    assert [(one.node_rank, one.node_id) for one in attempt.nodes] == [(0, "n1"), (1, "n2")]
    assert attempt.nodes[0].outcome == "failed"
    assert attempt.nodes[0].error is not None
    assert attempt.nodes[1].claimed_at is None
    lines = described(service.job(first.claim.job_id))
    assert "  node 0, n1: failed: out_of_memory: no memory left" in lines
    assert "  node 1, n2: not claimed" in lines


@pytest.mark.slow
def test_a_node_that_is_gone_ends_the_attempt_and_holds_nothing(service: ServiceDriver):
    first, _ = gang(service, max_restarts=0)
    with service.database.write() as session:
        gone = NodeGone("n2", "pool gpu: its allocation ended", blameless=True)
        assert attempts.lapse(session, service.settings, first.id, gone)
    job = service.job(first.claim.job_id)
    assert job.state is JobState.QUEUED
    assert job.attempts[0].nodes[1].outcome == "lapsed"
    assert error_of(first.beat())["code"] == "fenced"
    assert held(service) == {"n1"}


@pytest.mark.slow
def test_all_nodes_count(service: ServiceDriver):
    first, second = gang(service)
    with service.database.read() as session:
        (one,) = sharing.running(session, sharing.priorities(session), database_now(session))
        assert one.amount == 2
        (row,) = (held for held in merged(allocations.of_job(session, first.claim.job_id)))
        assert (row.cpu_slots, row.end) == (2, None)
    quota = service.person.get("/v1/quotas").json()["items"][0]
    assert quota["cpu_slots"]["used"] == 2
    shown = service.person.get("/v1/cluster/lanes").json()
    busy = [lane["node"] for lane in shown["lanes"] if lane["spans"]]
    assert sorted(busy) == ["n1", "n2"]
    second.finish("finished")
    first.finish("finished", result=example_result(first.claim.job_id))
    with service.database.read() as session:
        found = merged(allocations.of_job(session, first.claim.job_id))
        assert sum(one.cpu_slots for one in found) == 2
        assert all(one.end is not None for one in found)


@pytest.mark.slow
def test_a_deleted_job_leaves_no_members(service: ServiceDriver):
    for part in reversed(gang(service)):
        part.finish(
            "finished", result=example_result(part.claim.job_id) if part.claim.node_rank == 0 else None
        )
    assert service.person.delete(f"/v1/jobs/{part.claim.job_id}").status_code == 204
    cleaner = Cleaner(service.database, service.settings, "first")
    while cleaner.turn():
        pass
    with service.database.read() as session:
        assert session.get(Job, part.claim.job_id) is None
        assert session.query(AttemptMember).count() == 0


def test_a_job_from_before_there_were_gangs_demands_one_node():
    before = '{"gpus":1,"rollout_gpus":1,"vllm":false,"adapter":null}'
    assert stored_demand(before).nodes == 1
    one = JobSpec.model_validate(example_spec(resources={"gpus": 1, "placement": "split"}))
    assert demand_of(one) == before, "equal demands are equal texts"
    two = JobSpec.model_validate(example_spec(resources={"nodes": 2, "gpus": 4, "placement": "split"}))
    assert stored_demand(demand_of(two)) == Demand(4, 1, vllm=False, adapter=None, nodes=2, revision=2)
