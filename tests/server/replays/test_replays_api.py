"""The life of a replay, and requests for what is not there or not one's own."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest

from powermean.contracts.names import REPLAY_TASK, node_queue
from powermean.contracts.revisions import OF_OBJECTIVES
from server.db.models import Outbox, Pilot, PoolStatus, Replay
from server.db.session import database_now
from tests.support.replays import claim, finish, let_time_pass, outcome, record, shown, silence_nodes
from tests.support.reports import next_attempt, post_rows, row
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of
from tests.support.stored_things import store_of


@pytest.mark.slow
def test_from_the_question_to_the_answer(
    service: ServiceDriver, recorded: AttemptDriver, ask: Callable[..., Any]
) -> None:
    post_rows(recorded, row(3, "distance_to_grpo", 0.25, update=0), row(4, "distance_to_grpo", 0.5, update=0))
    replay = ask(algorithm="grpo", set={"clip": 0.1})
    assert (replay["state"], replay["step"], replay["attempt"]) == ("waiting", 3, 1)
    assert replay["phase"] == "waiting for a node to take it"
    assert replay["algorithm"]["epsilon_low"] == replay["algorithm"]["epsilon_high"] == 0.1
    assert replay["recorded"]["name"] == "pmpo"
    service.relay.turn()
    assert (REPLAY_TASK, node_queue("node-1"), replay["id"]) in service.sender.sent

    task = claim(service, replay).json()
    assert task["algorithm"].items() <= replay["algorithm"].items(), "without later fields at their defaults"
    assert task["recorded"]["name"] == "pmpo"
    assert [one["index"] for one in task["rows"]] == [0, 1, 2]
    assert task["distances"] == {"0": 0.25}
    assert store_of(service).get_bytes  # the reference is to be read by the node
    assert task["tokens"]["key"].startswith(f"jobs/{replay['job_id']}/tokens/1/")
    assert shown(service, replay)["phase"] == "running on node-1"
    assert shown(service, replay, "/result", status=409)["code"] == "conflict"

    assert finish(service, replay, outcome(service, replay)).status_code == 204
    found = shown(service, replay)
    assert (found["state"], found["phase"], found["node"]) == ("done", None, "node-1")
    assert found["summary"]["largest_difference"] == {"p": 0.5}
    assert found["finished_at"] is not None
    numbers = shown(service, replay, "/result")["trajectories"][0]["updates"][0]
    assert (numbers["recorded"]["p"], numbers["replayed"]["p"]) == (0.5, 1.0)
    tokens = shown(service, replay, "/tokens/0")
    assert tokens["recorded"]["pieces"] == ["<b>", "x"]
    assert tokens["recorded"]["updates"][0]["weight"] == [0.5, 0.5]
    assert tokens["replayed"]["updates"][0]["weight"] == [0.75, 0.25]
    assert "from 0 to 1" in shown(service, replay, "/tokens/2", status=404)["remedy"]

    service.relay.turn()
    with service.database.read() as session:
        owed = session.query(Outbox).where(Outbox.subject == replay["id"], Outbox.done_at.is_(None)).count()
    assert owed == 0


@pytest.mark.slow
def test_the_same_question_has_one_answer(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    first = ask(algorithm="grpo", set={"clip": 0.1})
    again = ask(status=200, algorithm="grpo", set={"epsilon_high": 0.1, "epsilon_low": 0.1})
    assert again["id"] == first["id"]
    others = [ask(algorithm="grpo"), ask(), ask(step=5)]
    assert len({one["id"] for one in [first, *others]}) == 4
    listed = service.person.get(f"/v1/jobs/{first['job_id']}/replays", params={"step": 3}).json()["items"]
    assert {one["id"] for one in listed} == {one["id"] for one in [first, *others[:2]]}
    with service.database.write() as session:  # as 0.1.0 stored it, which had none of the later fields
        replay = session.get_one(Replay, first["id"])
        replay.algorithm = {name: v for name, v in replay.algorithm.items() if name not in OF_OBJECTIVES}
        replay.digest = hashlib.sha256(json.dumps(replay.algorithm, sort_keys=True).encode()).hexdigest()
    assert ask(status=200, algorithm="grpo", set={"clip": 0.1})["id"] == first["id"]


def test_a_failed_one_is_tried_anew(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    replay = ask()
    claim(service, replay)
    error = {"code": "artefact_corrupt", "message": "damaged\0", "remedy": "restore it"}
    assert finish(service, replay, {"error": error}).status_code == 204
    failed = shown(service, replay)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "artefact_corrupt")
    assert claim(service, replay).status_code == 409
    again = ask()
    assert (again["id"], again["state"], again["error"]) == (replay["id"], "waiting", None)
    assert claim(service, replay).status_code == 200
    assert finish(service, replay, outcome(service, replay)).status_code == 204
    assert ask(status=200)["state"] == "done"


def test_a_late_word_changes_nothing(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    replay = ask()
    claim(service, replay)
    finish(service, replay, outcome(service, replay))
    late = finish(service, replay, {"error": {"code": "late", "message": "too late"}})
    assert late.status_code == 204
    assert shown(service, replay)["state"] == "done"


def test_a_silent_nodes_replay_goes_to_another(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    replay = ask()
    assert claim(service, replay, "node-1").status_code == 200
    assert claim(service, replay, "node-1").status_code == 200  # its worker started again
    service.report("node-2")
    assert claim(service, replay, "node-2").status_code == 409
    silence_nodes(service)
    service.scheduler.turn()
    assert shown(service, replay)["state"] == "waiting"
    service.report("node-2")
    assert claim(service, replay, "node-2").status_code == 200
    assert shown(service, replay)["node"] == "node-2"


@pytest.mark.slow
def test_no_replay_waits_for_ever(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    silence_nodes(service)
    replay = ask()
    assert "no node is alive" in replay["phase"]
    service.scheduler.turn()
    assert shown(service, replay)["state"] == "waiting"
    with service.database.write() as session:
        way = {"pool": "cpu", "node_id": "cpu-1", "state": "pending", "shape": {}}
        session.add(Pilot(id="cpu-1", created_at=database_now(session), **way))
    let_time_pass(service)
    service.scheduler.turn()
    found = shown(service, replay)
    assert found["state"] == "waiting", "a node is on its way"
    assert found["phase"] == "waiting for a node: pool cpu is starting a node"
    service.report()
    assert service.person.post("/v1/nodes/node-1/cordon").status_code == 200
    let_time_pass(service)
    service.scheduler.turn()
    assert shown(service, replay)["state"] == "waiting", "the node that is alive takes none"
    listed = service.person.get(f"/v1/jobs/{replay['job_id']}/replays").json()["items"]
    assert [one["phase"] for one in listed] == ["waiting for a node: pool cpu is starting a node"]
    with service.database.write() as session:
        refuses = {"shape": {}, "min": 0, "max": 1, "error": "sbatch: no such partition"}
        session.add(PoolStatus(name="cpu", kind="slurm", **refuses))
    let_time_pass(service)
    service.scheduler.turn()
    failed = shown(service, replay)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "no_node")
    assert failed["error"]["message"].endswith("; pool cpu can't start a node: sbatch: no such partition")
    assert "powermean up" in failed["error"]["remedy"]

    assert service.person.post("/v1/nodes/node-1/uncordon").status_code == 200
    replay = ask()
    let_time_pass(service)
    service.scheduler.turn()
    assert shown(service, replay)["error"]["code"] == "no_answer"

    replay = ask()
    claim(service, replay)
    let_time_pass(service)
    service.scheduler.turn()
    assert shown(service, replay)["error"]["code"] == "replay_timeout"


def test_a_step_without_records_says_which_have_some(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    refused = ask(status=404, step=4)
    assert "2 steps from 3 to 5" in refused["remedy"]
    assert "record.tokens" in refused["remedy"]
    other = service.submit()
    answer = service.person.post(f"/v1/jobs/{other}/replays", json={"step": 1})
    assert answer.status_code == 404
    assert "record.tokens" in error_of(answer)["remedy"]


@pytest.mark.slow
def test_the_attempt_that_counts_is_replayed(
    service: ServiceDriver, recorded: AttemptDriver, ask: Callable[..., Any]
) -> None:
    """The second attempt starts over, so that the first one's steps count no more."""
    second = next_attempt(service, recorded)
    assert ask(status=404)["code"] == "not_found"
    record(service, second, 3)
    assert ask()["attempt"] == 2


@pytest.mark.slow
def test_a_result_must_be_whole_and_the_replays_own(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    replay = ask()
    claim(service, replay)
    whole = outcome(service, replay)
    assert error_of(finish(service, replay, {}))["fields"][0]["path"] == "summary"
    without = {**whole, "tokens": None}
    assert error_of(finish(service, replay, without))["fields"][0]["path"] == "tokens.key"
    foreign = {**whole, "result": {**whole["result"], "key": "jobs/job-x/model/x"}}
    assert error_of(finish(service, replay, foreign))["fields"][0]["path"] == "result.key"
    assert shown(service, replay)["state"] == "running"


def test_only_nodes_compute_and_only_people_ask(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    replay = ask()
    path = f"/v1/jobs/{replay['job_id']}/replays"
    assert service.node.post(path, json={"step": 3}).status_code == 403
    assert service.anyone.get(path).status_code == 401
    assert service.person.post(f"/v1/replays/{replay['id']}/claim", json={"node_id": "n"}).status_code == 403
    assert service.person.post(f"/v1/replays/{replay['id']}/outcome", json={}).status_code == 403
    assert service.person.get(f"/v1/jobs/{service.submit()}/replays/{replay['id']}").status_code == 404
