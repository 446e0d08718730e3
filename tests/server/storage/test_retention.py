"""How long projects keep things, and how much they may store."""

import logging

import pytest

from server.db.session import Database
from server.storage.retention import apply_retention
from tests.support.service_driver import ServiceDriver, error_of, example_spec
from tests.support.stored_things import (
    commit,
    fail_replays,
    finish,
    full_job,
    let_time_pass,
    put,
    refs_below,
    replay,
    store_of,
)


def keep(service: ServiceDriver, **rules: object) -> None:
    answer = service.person.put("/v1/projects/default/retention", json=rules)
    assert answer.status_code == 200, answer.text
    assert service.person.get("/v1/projects/default/retention").json() == answer.json()


def apply(database: Database) -> dict[str, int]:
    return dict(apply_retention(database, database.write))


@pytest.mark.slow
def test_parts_go_after_their_days(service: ServiceDriver, caplog: pytest.LogCaptureFixture):
    old, young = full_job(service), full_job(service)
    fail_replays(service, old)
    let_time_pass(service, old, 10)
    before = refs_below(service, f"jobs/{young}")
    assert apply(service.database) == {}
    keep(service, texts_days=7, tokens_days=9, logs_days=30)
    with caplog.at_level(logging.INFO, logger="server.storage.retention"):
        assert apply(service.database) == {"texts": 1, "tokens": 1}
    assert "texts of 1 jobs" in caplog.text
    service.scheduler.turn()
    assert [len(refs_below(service, f"jobs/{old}/{part}")) for part in ("texts", "tokens", "logs")] == [
        0,
        0,
        1,
    ]
    assert refs_below(service, f"jobs/{young}") == before
    shown = service.person.get(f"/v1/jobs/{old}/trajectories?step=1").json()["items"][0]
    assert (shown["reward"], shown["prompt"], shown["has_tokens"]) == (1.0, None, False)
    assert replay(service, old).status_code == 404
    assert apply(service.database) == {}  # each part once
    keep(service, logs_days=0)
    assert apply(service.database)["logs"] == 2
    service.scheduler.turn()
    assert refs_below(service, f"jobs/{old}/logs") == refs_below(service, f"jobs/{young}/logs") == ()
    assert service.person.get(f"/v1/jobs/{old}/logs").json()["text"] == ""


@pytest.mark.slow
def test_a_replay_that_waits_keeps_its_tokens(service: ServiceDriver):
    job = full_job(service)
    keep(service, tokens_days=0)
    assert apply(service.database) == {}
    fail_replays(service, job)
    assert apply(service.database) == {"tokens": 1}


def test_running_jobs_are_left_alone(service: ServiceDriver):
    attempt = service.running()
    commit(service, attempt, 1)
    commit(service, attempt, 2)
    keep(service, texts_days=0, logs_days=0, checkpoints_last=0)
    assert apply(service.database) == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rules", "left"),
    [
        ({"checkpoints_last": 1}, [1, 4]),
        ({"checkpoints_last": 0}, [1]),
        ({"checkpoints_last": 1, "checkpoints_best": True}, [1, 2, 4]),
        ({"checkpoints_best": True}, [1, 2, 3, 4]),
    ],
)
def test_the_last_the_best_and_the_pinned_checkpoints_stay(service: ServiceDriver, rules, left):
    attempt = service.running(checkpoints={"every": 1, "keep": 4})
    job = attempt.claim.job_id
    for step, reward in ((1, 0.2), (2, 0.9), (3, 0.5), (4, 0.4)):
        rows = [{"step": step, "update": 0, "name": "eval/reward", "value": reward}]
        assert attempt.post("metrics", {"rows": rows}).is_success
        commit(service, attempt, step)
    service.person.put(f"/v1/jobs/{job}/checkpoints/1/pin")
    finish(service, attempt)
    keep(service, **rules)
    apply(service.database)
    service.scheduler.turn()
    found = service.person.get(f"/v1/jobs/{job}/checkpoints").json()["items"]
    assert [one["step"] for one in found] == left
    assert len(refs_below(service, f"jobs/{job}/checkpoints")) == len(left)


@pytest.mark.slow
def test_only_maintainers_set_rules_and_only_administrators_limits(service: ServiceDriver):
    for role, allowed in (("viewer", 403), ("member", 403), ("maintainer", 200)):
        someone = service.someone(role, name=role)
        assert someone.put("/v1/projects/default/retention", json={}).status_code == allowed
        assert someone.put("/v1/projects/default/storage/limit", json={"bytes": 1}).status_code == 403
        assert someone.get("/v1/projects/default/storage").status_code == 200


@pytest.mark.slow
def test_what_a_project_stores_is_the_sum_of_its_objects(service: ServiceDriver):
    service.project("other")
    job = full_job(service)
    full_job(service, project="other")
    rows = b'{"question": "1+1"}'
    dataset = service.person.post("/v1/datasets?project=default", content=rows).json()
    refs = [*refs_below(service, f"jobs/{job}"), *refs_below(service, f"datasets/{dataset['id']}")]
    found = service.person.get("/v1/projects/default/storage").json()
    assert found["bytes"] == sum(ref.size for ref in refs)
    by_kind = {use["kind"]: (use["bytes"], use["count"]) for use in found["uses"]}
    assert by_kind["datasets"] == (len(rows), 1)
    assert by_kind["checkpoints"][1] == 2
    assert by_kind["models"] == (len("the model"), 1)
    sizes = [thing["bytes"] for thing in found["largest"]]
    assert sizes == sorted(sizes, reverse=True)
    assert {thing["kind"] for thing in found["largest"]} == {
        "datasets",
        "checkpoints",
        "models",
        "trajectories",
    }


def test_sizes_beyond_32_bits_add_up(service: ServiceDriver):
    attempt = service.running()
    job = attempt.claim.job_id
    ref = put(service, f"jobs/{job}/checkpoints/1-1", "weights", "x") | {"size": 3 * 2**32}
    attempt.post("checkpoints", {"step": 1, "manifest": {"files": {"weights": ref}}})
    row = {"index": 0, "group": 0, "reward": 1.0, "advantage": 0.0, "length": 3, "weight_version": 0}
    row |= {"problem": "1+1", "truncated": False}
    texts = put(service, f"jobs/{job}/texts/1", "1.gz", "x") | {"size": 2**33}
    assert attempt.post("trajectories", {"step": 1, "rows": [row], "texts": texts}).is_success
    assert service.person.get("/v1/projects/default/storage").json()["bytes"] == 3 * 2**32 + 2**33


@pytest.mark.slow
def test_a_project_at_its_limit_takes_no_more(service: ServiceDriver):
    attempt = service.running()
    commit(service, attempt, 1)
    used = service.person.get("/v1/projects/default/storage").json()["bytes"]
    limit = "/v1/projects/default/storage/limit"
    assert service.person.put(limit, json={"bytes": used + 20}).json()["over_limit"] is False
    small, large = b'{"a": 1}', b'{"a": "0123456789"}\n{"a": "0123456789"}'
    refused = error_of(service.person.post("/v1/datasets", content=large))
    assert refused["code"] == "quota_exceeded"
    for number in (used, used + 20, len(large)):
        assert f"{number:,}" in refused["message"]
    made = service.person.post("/v1/datasets", content=small)
    assert made.status_code == 201
    assert service.person.put(limit, json={"bytes": used}).json()["over_limit"] is True
    for answer in (
        service.person.post("/v1/jobs", json=example_spec()),
        service.person.post("/v1/datasets", content=b'{"b": 1}'),
    ):
        assert (answer.status_code, error_of(answer)["code"]) == (409, "quota_exceeded")
    assert service.person.get("/v1/jobs").json()["items"][0]["id"] == attempt.claim.job_id
    assert len(store_of(service).children("datasets")) == 1  # the refused ones left nothing
    commit(service, attempt, 2)  # what runs goes on
    for more in (2**50, None):
        assert service.person.put(limit, json={"bytes": more}).json()["limit"] == more
        assert service.person.post("/v1/jobs", json=example_spec()).status_code == 202


def test_a_repeated_submit_is_no_new_job(service: ServiceDriver):
    headers = {"Idempotency-Key": "once"}
    first = service.person.post("/v1/jobs", json=example_spec(), headers=headers).json()["id"]
    service.person.put("/v1/projects/default/storage/limit", json={"bytes": 0})
    again = service.person.post("/v1/jobs", json=example_spec(), headers=headers)
    assert (again.status_code, again.json()["id"]) == (200, first)
