"""The life of a replay, and what is said of requests that ask for the impossible."""

import gzip
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import update

from powermean.artefacts import ArtefactStore
from powermean.contracts.names import REPLAY_TASK, node_queue
from powermean.contracts.replays import ReplayResult
from powermean.contracts.token_records import StepFacts, TrajectoryTokens, UpdateFacts, UpdateTokens
from powermean.token_segments import write_segment
from server.db.models import Job, Node, Outbox, Pilot, PoolStatus, Replay
from server.db.session import database_now
from tests.support.reports import next_attempt, post_rows, row, trajectory
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of

FACTS = StepFacts(
    step=3,
    progress=0.1,
    mean_reward=0.5,
    reward_std=0.5,
    max_new_tokens=4,
    updates=(UpdateFacts(update=0, epoch=0, minibatch=0, trajectories=2, tokens=6),),
)


def tokens_of(index: int, weight: float = 0.5) -> TrajectoryTokens:
    seen = UpdateTokens(update=0, log_ratio=(0.25, -0.5), weight=(weight, 1 - weight), clipped=(False, True))
    return TrajectoryTokens(
        index=index, token_ids=(1, 2), pieces=("<b>", "x"), sampler_log_probs=(-1.0, -1.0), updates=(seen,)
    )


def store_of(service: ServiceDriver) -> ArtefactStore:
    return ArtefactStore(service.settings.artefacts_url)


def record(service: ServiceDriver, attempt: AttemptDriver, step: int, *, tokens: bool = True) -> None:
    """The trajectories of a step, as a trainer reports them."""
    ref = None
    if tokens:
        segment = write_segment(FACTS, [tokens_of(0), tokens_of(1)])
        owner = f"jobs/{attempt.claim.job_id}/tokens/{attempt.claim.number}"
        ref = store_of(service).put_bytes(owner, f"{step}.jsonl.gz", segment).model_dump()
    rows = [trajectory(index, p=0.5) for index in range(3)]
    answer = attempt.post("trajectories", {"step": step, "rows": rows, "tokens": ref})
    assert answer.status_code == 204, answer.text


@pytest.fixture
def recorded(service: ServiceDriver) -> AttemptDriver:
    """A running pmpo job with token records of steps 3 and 5, none of step 4."""
    attempt = service.running()
    for step in (3, 4, 5):
        record(service, attempt, step, tokens=step != 4)
    return attempt


@pytest.fixture
def ask(service: ServiceDriver, recorded: AttemptDriver) -> Callable[..., Any]:
    def asked(status: int = 202, step: int = 3, **request: Any) -> Any:
        path = f"/v1/jobs/{recorded.claim.job_id}/replays"
        answer = service.person.post(path, json={"step": step, **request})
        assert answer.status_code == status, answer.text
        return answer.json() if answer.is_success else error_of(answer)

    return asked


def claim(service: ServiceDriver, replay: dict[str, Any], node: str = "node-1") -> Any:
    return service.node.post(f"/v1/replays/{replay['id']}/claim", json={"node_id": node})


def outcome(service: ServiceDriver, replay: dict[str, Any]) -> dict[str, Any]:
    """What a node posts, its parts stored."""
    aggregates = {"p": 0.5, "loss": 0.25}
    one = {"update": 0, "trajectories": 3, "covered": 2, "recorded": aggregates, "replayed": aggregates}
    numbers = {"update": 0, "recorded": {"p": 0.5}, "replayed": {"p": 1.0}}
    result = ReplayResult.model_validate(
        {
            "summary": {
                "trajectories": 3,
                "covered": 2,
                "updates": [one],
                "largest_difference": {"p": 0.5},
                "undefined_in_one": 0,
                "reproduces": None,
            },
            "trajectories": [{"index": 0, "advantage": 1, "advantage_replayed": 1, "updates": [numbers]}],
        }
    )
    owner, store = f"jobs/{replay['job_id']}/replays/{replay['id']}", store_of(service)
    packed = gzip.compress(result.model_dump_json().encode())
    segment = write_segment(FACTS, [tokens_of(0, 0.75), tokens_of(1)])
    return {
        "summary": result.summary.model_dump(mode="json"),
        "result": store.put_bytes(owner, "result.json.gz", packed).model_dump(),
        "tokens": store.put_bytes(owner, "tokens.jsonl.gz", segment).model_dump(),
    }


def finish(service: ServiceDriver, replay: dict[str, Any], body: dict[str, Any]) -> Any:
    return service.node.post(f"/v1/replays/{replay['id']}/outcome", json=body)


def shown(service: ServiceDriver, replay: dict[str, Any], rest: str = "", status: int = 200) -> Any:
    answer = service.person.get(f"/v1/jobs/{replay['job_id']}/replays/{replay['id']}{rest}")
    assert answer.status_code == status, answer.text
    return answer.json() if answer.is_success else error_of(answer)


def let_time_pass(service: ServiceDriver) -> None:
    """As if every replay had reached its deadline."""
    with service.database.write() as session:
        session.execute(update(Replay).values(deadline_at=database_now(session) - timedelta(seconds=1)))


def silence_nodes(service: ServiceDriver) -> None:
    with service.database.write() as session:
        session.execute(update(Node).values(seen_at=database_now(session) - timedelta(hours=1)))


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


def test_the_same_question_has_one_answer(service: ServiceDriver, ask: Callable[..., Any]) -> None:
    first = ask(algorithm="grpo", set={"clip": 0.1})
    again = ask(status=200, algorithm="grpo", set={"epsilon_high": 0.1, "epsilon_low": 0.1})
    assert again["id"] == first["id"]
    others = [ask(algorithm="grpo"), ask(), ask(step=5)]
    assert len({one["id"] for one in [first, *others]}) == 4
    listed = service.person.get(f"/v1/jobs/{first['job_id']}/replays", params={"step": 3}).json()["items"]
    assert {one["id"] for one in listed} == {one["id"] for one in [first, *others[:2]]}


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


@pytest.mark.parametrize(
    ("request_", "path", "words"),
    [
        ({"algorithm": "ppo"}, "algorithm", "One of pmpo, grpo"),
        ({"set": {"clipp": 1}}, "set.clipp", "clip_low, clip_high"),
        ({"set": {"clip_low": -1}}, "set.clip_low", "greater than 0"),
        ({"algorithm": "grpo", "set": {"clip": 2}}, "set.epsilon_low", "less than 1"),
        ({"algorithm": "cispo", "set": {"clip": 2}}, "set.clip", "ratio_cap"),
        ({"algorithm": "power_mean"}, "set.p", "p=0.5"),
        ({"algorithm": "apmpo", "set": {"epsilon_amplitude": 0.5}}, "set", "epsilon_base"),
        ({"set": {"beta": 0.1}}, "set.beta", "not recorded"),
        ({"algorithm": "dapo", "set": {"sampling_rounds": 2}}, "set.sampling_rounds", "samples nothing"),
        ({"set": {"name": "grpo"}}, "set.name", "no such field"),
        ({"set": {"ess_clip_range": [0.1]}}, "set.ess_clip_range", "Field required"),
    ],
)
def test_a_wrong_objective_is_refused_by_field(
    ask: Callable[..., Any], request_: dict[str, Any], path: str, words: str
) -> None:
    refused = ask(status=422, **request_)
    assert refused["code"] == "invalid"
    assert refused["fields"][0]["path"] == path
    assert words in str(refused)


def test_changes_start_from_the_recorded_values_of_the_same_objective(
    service: ServiceDriver,
) -> None:
    attempt = service.running(algorithm={"name": "pmpo", "clip_low": 0.3, "clip_fraction_full": 0.5})
    record(service, attempt, 3)
    path = f"/v1/jobs/{attempt.claim.job_id}/replays"
    changed = service.person.post(path, json={"step": 3, "set": {"clip_high": 0.1}}).json()["algorithm"]
    assert (changed["clip_low"], changed["clip_high"], changed["clip_fraction_full"]) == (0.3, 0.1, 0.5)
    other = service.person.post(path, json={"step": 3, "algorithm": "gmpo"}).json()["algorithm"]
    assert other["clip_low"] == 0.4
    both = {"clip": 0.2, "clip_high": 0.25, "ess_clip_range": [0.1, 0.2]}
    ends = service.person.post(path, json={"step": 3, "set": both}).json()["algorithm"]
    assert (ends["clip_low"], ends["clip_high"], ends["ess_clip_range"]) == (0.2, 0.25, [0.1, 0.2])


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


def test_a_field_under_its_old_name_is_the_same_replay_and_told(service: ServiceDriver) -> None:
    attempt = service.running(algorithm={"name": "pmpo", "importance_sampling_clip_max": 3})
    record(service, attempt, 3)
    path = f"/v1/jobs/{attempt.claim.job_id}/replays"
    old = {"sampler_weight": "token", "sampler_weight_cap": 4}
    answer = service.person.post(path, json={"step": 3, "set": old})
    assert answer.status_code == 202
    told = [(one["path"], one["replacement"]) for one in answer.json()["deprecations"]]
    assert told == [
        ("set.sampler_weight", "set.importance_sampling_correction"),
        ("set.sampler_weight_cap", "set.importance_sampling_clip_max"),
    ]
    new = {"importance_sampling_correction": "token", "importance_sampling_clip_max": 4}
    assert answer.json()["algorithm"].items() >= (old | new).items()
    again = service.person.post(path, json={"step": 3, "set": new})
    assert (again.status_code, again.json()["id"]) == (200, answer.json()["id"])
    assert again.json()["deprecations"] == []
    for wrong in ({"sampler_weight": "group"}, {**new, "sampler_weight": "off"}):
        refused = service.person.post(path, json={"step": 3, "set": wrong})
        assert [one["path"] for one in error_of(refused)["fields"]] == ["set.sampler_weight"]


def test_a_correction_for_what_the_ratio_holds_already_is_refused(service: ServiceDriver) -> None:
    attempt = service.running(rollout={"old_policy": "sampler"})
    record(service, attempt, 3)
    path = f"/v1/jobs/{attempt.claim.job_id}/replays"
    refused = service.person.post(path, json={"step": 3, "set": {"importance_sampling_correction": "token"}})
    assert refused.status_code == 422
    assert error_of(refused)["fields"][0]["path"] == "set.importance_sampling_correction"
    assert "rollout.old_policy" in error_of(refused)["message"]
    assert service.person.post(path, json={"step": 3, "algorithm": "grpo"}).status_code == 202


def test_nothing_is_replayed_beside_an_objective_that_is_refused(
    service: ServiceDriver, recorded: AttemptDriver, ask: Callable[..., Any]
) -> None:
    done, waits = ask(), ask(set={"clip": 0.3})
    claim(service, done)
    assert finish(service, done, outcome(service, done)).status_code == 204
    with service.database.write() as session:  # as if another version had stored them
        job = session.get_one(Job, recorded.claim.job_id)
        job.spec = job.spec | {"algorithm": job.spec["algorithm"] | {"ess_target": "rising"}}
        row = session.get_one(Replay, done["id"])
        row.algorithm = row.algorithm | {"clip_low": -1.0}
    for request in ({"step": 5}, {"step": 5, "algorithm": "grpo"}):
        refused = ask(status=409, **request)
        assert refused["code"] == "spec_refused"
        assert refused["message"].startswith("algorithm.ess_target: 'rising' is not one of")
    found = shown(service, done)
    assert [one["path"] for one in found["refused"]] == ["algorithm.clip_low", "recorded.ess_target"]
    shown(service, done, "/result")
    listed = service.person.get(f"/v1/jobs/{done['job_id']}/replays").json()["items"]
    assert [one["id"] for one in listed] == [waits["id"], done["id"]]
    assert claim(service, waits).status_code == 409
    failed = shown(service, waits)
    assert (failed["state"], failed["error"]["code"]) == ("failed", "spec_refused")
    with service.database.write() as session:
        job = session.get_one(Job, recorded.claim.job_id)
        job.spec = {name: value for name, value in job.spec.items() if name != "algorithm"}
    assert [one["path"] for one in shown(service, done)["refused"]] == ["algorithm.clip_low"]


def test_a_replay_without_a_correction_does_not_ask_for_pi_old(
    service: ServiceDriver, recorded: AttemptDriver, ask: Callable[..., Any]
) -> None:
    with service.database.write() as session:
        job = session.get_one(Job, recorded.claim.job_id)
        job.spec = job.spec | {"training": {}, "rollout": job.spec["rollout"] | {"old_policy": "oldest"}}
    refused = ask(status=409, set={"importance_sampling_correction": "token"})
    assert "rollout.old_policy: 'oldest' is not one of" in refused["message"]
    assert claim(service, ask()).status_code == 200
