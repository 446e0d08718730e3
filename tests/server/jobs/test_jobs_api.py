"""Jobs over REST: submit, find, cancel, and the check by a node."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import yaml
from httpx import Response
from sqlalchemy import event

from powermean.contracts.api import JobState
from server.db.models import Dataset, Job
from server.db.session import database_now
from tests.server.identity.test_policy_matrix import PUBLIC
from tests.support.service_driver import ServiceDriver, error_of, example_spec

BAD_SPECS = [
    ({"training": {"steps": 0}}, "training.steps"),
    ({"training": {"steps": 1, "prompts_per_step": 8, "minibatches": 3}}, "training"),
    ({"rollout": {"group_size": 1}}, "rollout.group_size"),
    ({"surprise": 1}, "surprise"),
    ({"model": {"name": 3}}, "model.name"),
    ({"model": {"name": "a", "folder": "b"}}, "model"),
    ({"algorithm": {"name": "pmpo", "clip_lowest": 1}}, "algorithm.clip_lowest"),
    ({"algorithm": {"name": "magic"}}, "algorithm.name"),
    ({"algorithm": {"name": "power_mean", "p": 9}}, "algorithm.p"),
    ({"algorithm": {"name": "holder", "p_end": -20}}, "algorithm.p_end"),
    ({"algorithm": {"name": "pmpo", "clip_fraction_full": 0}}, "algorithm.clip_fraction_full"),
    ({"algorithm": {"name": "pmpo", "epsilon_high": 4e-4}}, "algorithm.epsilon_high"),
    ({"data": {"kind": "arithmetic", "tasks": [{"operator": "+", "low": 3}]}}, "data.tasks.0.high"),
    ({"data": {"kind": "arithmetic", "tasks": [{"operator": "+", "low": 3, "high": 1}]}}, "data.tasks.0"),
    ({"algorithm": {"name": "dapo", "sampling_rounds": 0}}, "algorithm.sampling_rounds"),
    ({"algorithm": {"name": "dapo", "overlong_buffer": 64}}, "algorithm.overlong_buffer"),
    ({"seed": "x"}, "seed"),
    ({"seed": "1"}, "seed"),
    ({"seed": True}, "seed"),
    ({"record": {"texts": 1}}, "record.texts"),
]


@pytest.mark.parametrize(("changes", "path"), BAD_SPECS)
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_bad_spec_is_refused_naming_the_field(service: ServiceDriver, changes, path):
    answer = service.person.post("/v1/jobs", json=example_spec(**changes))
    assert answer.status_code == 422
    error = error_of(answer)
    assert error["code"] == "invalid"
    assert path in [field["path"] for field in error["fields"]]
    assert service.person.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_body_that_is_not_json_is_refused(service: ServiceDriver):
    answer = service.person.post("/v1/jobs", content=b"{name:", headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert "JSON" in error_of(answer)["message"]


def test_a_submitted_job_is_accepted_with_its_address(service: ServiceDriver):
    answer = service.person.post("/v1/jobs", json=example_spec())
    assert answer.status_code == 202
    job = service.person.get(answer.headers["location"]).json()
    assert job["state"] == "validating"
    assert job["spec"]["algorithm"]["name"] == "pmpo"
    assert (job["owner"], job["created_by"]) == ("administrator", "person-administrator")
    assert job | {"deprecations": [], "owner": None} == answer.json()


def test_one_key_is_one_job(service: ServiceDriver):
    def submit(**changes: Any) -> Response:
        return service.person.post(
            "/v1/jobs", json=example_spec(**changes), headers={"Idempotency-Key": "once"}
        )

    with ThreadPoolExecutor(6) as pool:
        refused = [pool.submit(submit, priority="none") for _ in range(2)]
        answers = [one.result() for one in [pool.submit(submit) for _ in range(4)]]
    assert {one.result().status_code for one in refused} <= {409, 422}
    assert sorted(answer.status_code for answer in answers) == [200, 200, 200, 202]
    assert len({answer.json()["id"] for answer in answers}) == 1
    again, other = submit(), submit(seed=1)
    assert (again.status_code, other.status_code) == (200, 409)
    assert again.json() == answers[0].json()
    assert error_of(other)["code"] == "conflict"
    assert len(service.person.get("/v1/jobs").json()["items"]) == 1


def test_a_key_does_not_reach_into_other_peoples_jobs(service: ServiceDriver):
    headers = {"Idempotency-Key": "once"}
    mine = service.person.post("/v1/jobs", json=example_spec(), headers=headers)
    theirs = service.someone().post("/v1/jobs", json=example_spec(), headers=headers)
    assert theirs.status_code == 202
    assert theirs.json()["id"] != mine.json()["id"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_nothing_without_a_key(service: ServiceDriver):
    """Every route of the API, whatever is in its path or body."""
    asked = 0
    for route in service.app.routes:
        for method in route.methods:
            path = re.sub(r"\{[^}]*\}", "x", route.path)
            if (method, path) in PUBLIC:
                continue
            answer = service.anyone.request(method, path, json={})
            assert answer.status_code == 401, f"{method} {path} answered {answer.status_code}"
            assert error_of(answer)["code"] == "unauthenticated"
            asked += 1
    assert asked > 20


def test_pages_hold_every_job_once_newest_first(service: ServiceDriver):
    made = [service.submit(name=f"job {i}") for i in range(5)]
    seen, cursor = [], None
    while True:
        params = {"limit": 2} | ({"cursor": cursor} if cursor else {})
        page = service.person.get("/v1/jobs", params=params).json()
        seen += [item["id"] for item in page["items"]]
        cursor = page["next"]
        if cursor is None:
            break
    assert sorted(seen) == sorted(made)
    assert seen == sorted(made, reverse=True)


@pytest.mark.slow
def test_filters(service: ServiceDriver):
    first = service.submit(name="50% off")
    second = service.queued(name="Sorting")

    def found(**params):
        return [item["id"] for item in service.person.get("/v1/jobs", params=params).json()["items"]]

    assert found(state="queued") == [second]
    assert found(name="sort") == [second]
    assert found(name="%") == [first]
    assert found(created_by="nobody") == []
    assert service.person.get("/v1/jobs", params={"state": "sleeping"}).status_code == 422


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("cursor", ["!", "AAAA", "é", "////"])
def test_a_made_up_cursor_is_refused(service: ServiceDriver, cursor):
    answer = service.person.get("/v1/jobs", params={"cursor": cursor})
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "cursor"


def test_unknown_job(service: ServiceDriver):
    for answer in (
        service.person.get("/v1/jobs/job-none"),
        service.person.post("/v1/jobs/job-none/cancel"),
        service.node.get("/v1/jobs/job-none/validation"),
    ):
        assert answer.status_code == 404
        assert error_of(answer)["code"] == "not_found"


def test_a_node_checks_the_spec_and_the_job_is_queued(service: ServiceDriver):
    job_id = service.submit()
    task = service.node.get(f"/v1/jobs/{job_id}/validation").json()
    assert task["task"]["spec"]["name"] == "adding up"
    service.validate(job_id)
    assert service.job(job_id).state is JobState.QUEUED
    assert service.node.get(f"/v1/jobs/{job_id}/validation").status_code == 409


def test_what_a_node_finds_fails_the_job_by_field(service: ServiceDriver):
    job_id = service.submit()
    finding = {
        "code": "unknown_model",
        "message": "no such model",
        "path": "model.name",
        "remedy": "name another",
    }
    service.validate(job_id, finding)
    service.validate(job_id)  # a second node's result comes too late
    job = service.job(job_id)
    assert job.state is JobState.FAILED
    assert job.error is not None
    assert job.error.model_dump() == finding
    assert job.finished_at is not None


def test_people_cannot_act_as_nodes_nor_nodes_as_people(service: ServiceDriver):
    job_id = service.submit()
    assert service.person.post(f"/v1/jobs/{job_id}/validation", json={"errors": []}).status_code == 403
    assert service.node.post(f"/v1/jobs/{job_id}/cancel").status_code == 403


def test_the_dataset_of_a_job_must_be_there_with_its_fields(service: ServiceDriver):
    with service.database.write() as session:
        session.add(
            Dataset(
                id="ds-1",
                project_id="default",
                sha256="0" * 64,
                name="sums",
                rows=2,
                fields=["question", "answer"],
                lacking={"hint": 17},
                artefact={"key": "datasets/x", "sha256": "0" * 64, "size": 3},
                created_at=database_now(session),
            )
        )

    def submit(**data):
        spec = example_spec(data={"kind": "jsonl", "dataset": "ds-1", **data})
        return service.person.post("/v1/jobs", json=spec)

    assert submit().status_code == 202
    for wrong, path, said in [
        ({"dataset": "ds-2"}, "data.dataset", "no dataset ds-2"),
        ({"prompt": "{query}"}, "data.prompt", "line 1: no field 'query'"),
        ({"prompt": "{question"}, "data.prompt", "{"),
        ({"answer_field": "hint"}, "data.answer_field", "line 17: no field 'hint'"),
    ]:
        answer = submit(**wrong)
        assert answer.status_code == 422
        assert error_of(answer)["fields"][0]["path"] == path
        assert said in error_of(answer)["fields"][0]["message"]
    by_name = error_of(submit(dataset="sums"))["fields"][0]
    assert by_name["remedy"] == "That is the name of ds-1: write the id."


def test_the_text_of_a_spec_is_kept_as_it_came(service: ServiceDriver):
    text = (
        "# try 2\n"
        + yaml.safe_dump(example_spec(max_restarts=3), sort_keys=False)
        + "seed: 0  # as by default\n"
    )
    for status in (202, 200):  # a repeated request finds the first one's job
        answer = service.person.post("/v1/jobs/text", json={"text": text}, headers={"Idempotency-Key": "k"})
        assert answer.status_code == status, answer.text
    assert answer.json()["spec"]["max_restarts"] == 3
    kept = service.person.get(f"/v1/jobs/{answer.json()['id']}/text").json()
    assert kept == {"text": text}


def test_a_spec_sent_as_json_keeps_what_was_said(service: ServiceDriver):
    spec = example_spec(max_restarts=3)
    job_id = service.person.post("/v1/jobs", json=spec).json()["id"]
    assert json.loads(service.person.get(f"/v1/jobs/{job_id}/text").json()["text"]) == spec


def test_a_job_from_before_texts_were_kept_has_one(service: ServiceDriver):
    job_id = service.submit(max_restarts=5)
    with service.database.write() as session:
        session.get_one(Job, job_id).spec_text = None
    assert "max_restarts: 5" in service.person.get(f"/v1/jobs/{job_id}/text").json()["text"]


@pytest.mark.parametrize(
    ("text", "code", "paths"),
    [
        ("name: a\n  b: [", "unreadable_spec", []),
        (
            "name: a\nmodel: {name: a/b}\ndata: {kind: arithmetic}\ntraining: {steps: 0}\n",
            "invalid",
            ["training.steps"],
        ),
    ],
)
def test_a_text_that_is_no_spec_says_what_is_wrong(service: ServiceDriver, text, code, paths):
    answer = service.person.post("/v1/jobs/text", json={"text": text})
    assert answer.status_code == 422
    assert error_of(answer)["code"] == code
    assert [field["path"] for field in error_of(answer)["fields"]] == paths


@pytest.mark.slow
def test_a_waiting_job_is_cancelled_at_once(service: ServiceDriver):
    for job_id in (service.submit(), service.queued(), service.started()):
        answer = service.person.post(f"/v1/jobs/{job_id}/cancel")
        assert answer.status_code == 200
        assert answer.json()["state"] == "cancelled"
        assert service.person.post(f"/v1/jobs/{job_id}/cancel").json() == answer.json()


@pytest.mark.slow
def test_cancelling_an_unclaimed_attempt_frees_its_place_and_fences_its_claim(service: ServiceDriver):
    job_id = service.started()
    service.person.post(f"/v1/jobs/{job_id}/cancel")
    claim = service.node.post(f"/v1/attempts/{job_id}.1/claim")
    assert claim.status_code == 409
    assert error_of(claim)["code"] == "fenced"
    other = service.started()
    assert service.job(other).state is JobState.STARTING


def test_a_running_job_is_cancelled_by_its_next_heartbeat(service: ServiceDriver):
    attempt = service.running()
    job_id = attempt.claim.job_id
    answer = service.person.post(f"/v1/jobs/{job_id}/cancel").json()
    assert answer["state"] == "running"
    assert answer["cancel_requested"]
    assert attempt.beat().json()["order"] == "cancel"
    attempt.finish("cancelled")
    assert service.job(job_id).state is JobState.CANCELLED


@contextmanager
def writing_statements(service: ServiceDriver) -> Iterator[list[str]]:
    """The statements of writing transactions."""
    seen: list[str] = []

    def note(connection, cursor, statement, *rest) -> None:
        if connection.get_execution_options().get("powermean_writes"):
            seen.append(statement)

    event.listen(service.database.engine, "before_cursor_execute", note)
    yield seen
    event.remove(service.database.engine, "before_cursor_execute", note)


def test_a_submit_and_a_cancel_hold_the_write_lock_for_few_statements(service: ServiceDriver):
    job_id = service.submit()
    with writing_statements(service) as submitted:
        service.person.post("/v1/jobs", json=example_spec(), headers={"Idempotency-Key": "a"})
    assert len([one for one in submitted if not one.startswith(("SAVEPOINT", "RELEASE"))]) <= 7, submitted
    with writing_statements(service) as cancelled:
        service.person.post(f"/v1/jobs/{job_id}/cancel")
    assert len([one for one in cancelled if not one.startswith(("SAVEPOINT", "RELEASE"))]) <= 6, cancelled


@pytest.mark.slow
def test_what_is_stored_of_a_submitted_job_is_what_the_answer_said(service: ServiceDriver):
    answer = service.person.post("/v1/jobs", json=example_spec()).json()
    shown = service.person.get(f"/v1/jobs/{answer['id']}").json()
    answer.pop("deprecations")
    assert shown | {"owner": None} == answer
    (first,) = service.events(answer["id"])
    assert (first.seq, first.kind, first.data["state"]) == (1, "state", "validating")
