"""Nodes are cordoned, drained and opened again; what runs on a draining node goes on elsewhere."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import select, update

from powermean.contracts.api import JobState
from powermean.contracts.engines import EngineSpec
from server.cluster import drains
from server.db.models import Attempt, Node, Person, Replay
from server.db.session import database_now
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of

READY = {"generation": 1, "state": "ready", "url": "http://10.0.0.1:9000"}


def say(service: ServiceDriver, what: str, node_id: str = "node-1", **body: Any) -> dict[str, Any]:
    answer = service.person.post(f"/v1/nodes/{node_id}/{what}", json=body)
    assert answer.status_code == 200, answer.text
    said: dict[str, Any] = answer.json()
    return said


def node(service: ServiceDriver, node_id: str = "node-1") -> dict[str, Any]:
    found: dict[str, Any] = service.person.get(f"/v1/nodes/{node_id}").json()
    return found


def order(attempt: AttemptDriver) -> str:
    return str(attempt.beat().json()["order"])


def leave(attempt: AttemptDriver) -> None:
    """What the supervisor does when it is told to."""
    assert order(attempt) == "checkpoint_and_exit"
    assert attempt.finish("checkpointed").status_code == 204


def let_time_come(service: ServiceDriver) -> None:
    with service.database.write() as session:
        session.execute(update(Node).values(drain_at=database_now(session) - timedelta(seconds=1)))


def silence(service: ServiceDriver) -> None:
    with service.database.write() as session:
        long_ago = database_now(session) - timedelta(seconds=service.settings.node_timeout_s + 1)
        session.execute(update(Node).values(seen_at=long_ago))


@pytest.mark.slow
def test_what_runs_on_a_draining_node_goes_on_at_another(service: ServiceDriver):
    attempt = service.running()
    service.report("node-2")
    said = say(service, "drain", reason="kernel update")
    assert (said["closed"], said["closed_reason"], said["drained"]) == ("draining", "kernel update", False)
    assert order(attempt) == "continue"
    service.scheduler.turn()
    assert order(attempt) == "checkpoint_and_exit"
    attempt.commit(7)
    leave(attempt)
    assert node(service)["drained"]
    service.scheduler.turn()
    second = service.claim(f"{attempt.claim.job_id}.2")
    assert second.claim.allocations[0].node_id == "node-2"
    assert second.claim.resume is not None
    assert second.claim.resume.step == 7
    with service.database.read() as session:
        first = session.get(Attempt, attempt.id)
        assert first is not None
        assert first.order_reason == "node-1 is draining (kernel update)"
        assert first.ordered_at is not None


@pytest.mark.slow
def test_a_job_with_no_other_node_waits_and_names_it(service: ServiceDriver):
    attempt = service.running()
    say(service, "drain", reason="kernel update")
    service.scheduler.turn()
    leave(attempt)
    for _ in range(2):
        service.report()  # the node's reports change nothing
        service.scheduler.turn()
    job = service.job(attempt.claim.job_id)
    assert (job.state, job.phase) == (
        JobState.QUEUED,
        "waiting for a node: node-1 is draining (kernel update)",
    )
    assert say(service, "uncordon")["closed"] is None
    service.scheduler.turn()
    service.claim(f"{job.id}.2")


def test_an_attempt_that_nobody_has_claimed_is_withdrawn(service: ServiceDriver):
    job_id = service.started()
    say(service, "drain")
    service.report("node-2")
    service.scheduler.turn()
    assert service.node.post(f"/v1/attempts/{job_id}.1/claim").status_code == 409
    service.scheduler.turn()
    assert service.claim(f"{job_id}.2").claim.allocations[0].node_id == "node-2"
    assert node(service)["drained"]


def test_a_cordoned_node_keeps_what_it_runs_and_gets_nothing_new(service: ServiceDriver):
    service.report(cpu_slots=2)
    first = service.queued()
    service.scheduler.turn()
    attempt = service.claim(f"{first}.1")
    assert say(service, "cordon")["closed_reason"] == "by administrator"
    second = service.queued()
    service.scheduler.turn()
    assert order(attempt) == "continue"
    assert service.job(second).phase == "waiting for a node: node-1 is cordoned (by administrator)"
    say(service, "uncordon")
    service.scheduler.turn()
    assert service.job(second).state is JobState.STARTING


def test_a_closed_node_checks_no_specs(service: ServiceDriver):
    service.report()
    say(service, "cordon", reason="disks")
    job_id = service.submit()
    service.relay.turn()
    service.scheduler.turn()
    assert service.sender.sent == []
    said = "waiting for a node that can check the spec: node-1 is cordoned (disks)"
    assert service.job(job_id).phase == said


def test_a_drain_begins_at_its_time(service: ServiceDriver):
    attempt = service.running()
    at = datetime.now(UTC) + timedelta(hours=2)
    said = say(service, "drain", reason="move", at=at.isoformat())
    assert (said["closed"], datetime.fromisoformat(said["drain_at"])) == (None, at)
    service.scheduler.turn()
    assert order(attempt) == "continue"
    let_time_come(service)
    service.scheduler.turn()
    assert order(attempt) == "checkpoint_and_exit"
    assert node(service)["closed"] == "draining"


@pytest.mark.slow
def test_a_planned_drain_of_a_cordoned_node_and_its_end(service: ServiceDriver):
    service.report()
    say(service, "cordon")
    say(service, "drain", at=(datetime.now(UTC) + timedelta(hours=2)).isoformat())
    assert node(service)["closed"] == "cordoned"
    let_time_come(service)
    service.scheduler.turn()
    assert node(service)["closed"] == "draining"
    opened = say(service, "uncordon")
    assert (opened["closed"], opened["closed_reason"], opened["drain_at"]) == (None, None, None)
    service.scheduler.turn()
    assert node(service)["closed"] is None


@pytest.mark.parametrize(
    ("at", "why"),
    [
        ("2026-01-01T00:00:00+00:00", "is past"),
        ("9999-12-31T23:59:00-12:00", "is more than 366 days away"),
        ("2027-01-01T00:00:00", "timezone"),
        ("tomorrow", "datetime"),
    ],
)
def test_a_time_that_makes_no_sense_is_named(service: ServiceDriver, at: str, why: str):
    service.report()
    answer = service.person.post("/v1/nodes/node-1/drain", json={"at": at})
    assert answer.status_code == 422
    (fault,) = error_of(answer)["fields"]
    assert fault["path"] == "at"
    assert why in fault["message"]
    assert node(service)["drain_at"] is None


def test_draining_twice_is_draining_once(service: ServiceDriver):
    attempt = service.running()
    first = say(service, "drain", reason="kernel update")
    service.scheduler.turn()
    again = say(service, "drain")
    assert (again["drain_at"], again["closed_reason"]) == (first["drain_at"], "kernel update")
    assert say(service, "cordon")["closed"] == "draining"
    later = (datetime.now(UTC) + timedelta(hours=2)).isoformat()
    refused = service.person.post("/v1/nodes/node-1/drain", json={"at": later})
    assert (refused.status_code, error_of(refused)["remedy"]) == (409, "Uncordon it first.")
    service.scheduler.turn()
    leave(attempt)


@pytest.mark.slow
def test_one_who_is_told_to_leave_leaves_though_the_node_was_opened(service: ServiceDriver):
    attempt = service.running()
    say(service, "drain")
    service.scheduler.turn()
    say(service, "uncordon")
    service.scheduler.turn()
    leave(attempt)
    service.scheduler.turn()
    assert service.claim(f"{attempt.claim.job_id}.2").claim.allocations[0].node_id == "node-1"


def test_what_was_opened_before_the_order_is_left_alone(service: ServiceDriver):
    attempt = service.running()
    say(service, "drain")
    say(service, "uncordon")
    with service.database.write() as session:  # a turn that had looked while the node was draining
        drains.order_to_leave(session, attempt.claim.job_id, database_now(session))
    assert order(attempt) == "continue"


@pytest.mark.slow
def test_a_cancel_is_not_softened(service: ServiceDriver):
    attempt = service.running()
    service.person.post(f"/v1/jobs/{attempt.claim.job_id}/cancel")
    say(service, "drain")
    service.scheduler.turn()
    assert order(attempt) == "cancel"


@pytest.mark.slow
def test_a_dead_node_that_drains_stays_closed_when_it_is_back(service: ServiceDriver):
    attempt = service.running()
    silence(service)
    say(service, "drain", reason="fan")
    service.scheduler.turn()
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert not node(service)["drained"]  # nobody knows what runs there
    for instance in ("the one", "another"):  # also when it was set up anew
        silence(service)
        service.report(instance=instance)
        service.scheduler.turn()
        assert (node(service)["closed"], node(service)["drained"]) == ("draining", True)
    assert service.job(attempt.claim.job_id).state is JobState.QUEUED


def test_a_node_that_was_removed_comes_back_open(service: ServiceDriver):
    service.report()
    say(service, "drain")
    silence(service)
    assert service.person.delete("/v1/nodes/node-1").status_code == 204
    service.report()
    assert node(service)["closed"] is None


def placed(service: ServiceDriver, engine_id: str) -> dict[str, Any]:
    found: dict[str, Any] = service.person.get(f"/v1/engines/{engine_id}").json()
    return found


@pytest.mark.slow
def test_an_engine_moves_when_its_jobs_have_left(service: ServiceDriver):
    both = ("transformers", "vllm")
    service.report(gpus=2, engines=both)
    spec = EngineSpec.model_validate({"name": "smol", "model": {"name": "tiny/model"}, "gpus": 1})
    made = service.person.post("/v1/engines", json=spec.model_dump(mode="json")).json()["id"]
    service.scheduler.turn()
    ready = READY | {"id": made, "gpu_uuids": ["node-1-gpu-0"]}
    service.report(gpus=2, engines=both, services=(ready,))
    job_id = service.queued(
        model={"name": "tiny/model", "lora": {"rank": 4}},
        resources={"gpus": 1},
        rollout={"sharing": "shared"},
    )
    service.scheduler.turn()
    attempt = service.claim(f"{job_id}.1")
    say(service, "drain", reason="fan")
    service.scheduler.turn()
    assert placed(service, made)["node"] == "node-1"  # a job samples from it
    leave(attempt)
    service.scheduler.turn()
    assert placed(service, made)["node"] is None
    assert not node(service)["drained"]  # it runs until the node says that it is gone
    assert placed(service, made)["why"].endswith("node-1 is draining (fan)")
    assert service.report(gpus=2, engines=both).engines == ()
    service.report("node-2", gpus=2, engines=both)
    service.scheduler.turn()
    assert (placed(service, made)["node"], placed(service, made)["generation"]) == ("node-2", 2)
    assert node(service)["drained"]


def test_an_engine_on_a_cpu_does_not_come_back_to_a_closed_node(service: ServiceDriver):
    service.report(engines=("vllm",))
    say(service, "cordon", reason="fan")
    spec = {"name": "smol", "model": {"name": "tiny/model"}}
    made = service.person.post("/v1/engines", json=spec).json()["id"]
    service.scheduler.turn()
    assert placed(service, made)["why"] == "waiting for a node: node-1 is cordoned (fan)"


def test_only_administrators_close_nodes_and_only_those_that_are_there(service: ServiceDriver):
    service.report()
    member = service.someone()

    def ask(client: Any, path: str) -> Response:
        answer: Response = client.post(path, json={})
        return answer

    for what in ("cordon", "drain", "uncordon"):
        assert ask(member, f"/v1/nodes/node-1/{what}").status_code == 403
        assert ask(service.person, f"/v1/nodes/node-9/{what}").status_code == 404
        assert service.person.post(f"/v1/nodes/node-1/{what}").status_code == 200  # without a body
    assert service.person.get("/v1/nodes/node-9").status_code == 404


def test_a_node_that_checks_a_spec_or_runs_a_replay_is_not_empty(service: ServiceDriver):
    attempt = service.running()
    say(service, "drain")
    service.scheduler.turn()
    leave(attempt)
    service.report(checking=("job-b",))
    assert not node(service)["drained"]
    service.report()
    assert node(service)["drained"]
    with service.database.write() as session:
        at = database_now(session)
        session.add(
            Replay(
                id="replay-a",
                job_id=attempt.claim.job_id,
                step=1,
                attempt=1,
                algorithm={},
                digest="0" * 64,
                state="running",
                node="node-1",
                deadline_at=at,
                created_by=session.scalars(select(Person.id)).first(),
                created_at=at,
            )
        )
    assert not node(service)["drained"]


def test_the_audit_log_has_who_closed_it_and_why(service: ServiceDriver):
    service.report()
    say(service, "drain", reason="kernel update")
    service.app.state.journal.seal()
    entry = service.person.get("/v1/audit").json()["items"][0]
    assert (entry["verb"], entry["detail"]["reason"]) == ("cluster.change", "kernel update")
    assert entry["target"] == "node-1"


@pytest.mark.slow
def test_administrators_who_contradict_each_other_leave_nothing_stuck(service: ServiceDriver):
    attempt, reason = service.running(), {"reason": "fan"}

    def say_in_turn(words: tuple[str, ...]) -> list[int]:
        asked = [
            service.person.post(f"/v1/nodes/node-1/{word}", json=reason if word != "uncordon" else None)
            for word in words
        ]
        return [answer.status_code for answer in asked if answer.status_code != 200]

    with ThreadPoolExecutor(3) as pool:
        said = [pool.submit(say_in_turn, words) for words in permutations(("drain", "cordon", "uncordon"))]
        for _ in range(5):
            service.scheduler.turn()
        assert [one.result() for one in said] == [[]] * 6
    assert node(service)["closed"] in (None, "cordoned", "draining")
    say(service, "uncordon")
    service.scheduler.turn()
    if order(attempt) == "checkpoint_and_exit":
        leave(attempt)
        service.scheduler.turn()
        attempt = service.claim(f"{attempt.claim.job_id}.2")
    assert order(attempt) == "continue"
