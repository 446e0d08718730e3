"""The audit log: what is in it, who reads it, and what never gets there."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from starlette.testclient import TestClient

from powermean.audit_chain import is_signed, verify
from powermean.contracts.audit import AuditEntry, AuditHead
from server.settings import Settings
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, ServiceDriver, error_of, example_spec


def log(service: ServiceDriver, path: str = "/v1/audit", **wanted: object) -> list[AuditEntry]:
    """Newest first."""
    answer = service.person.get(path, params={"limit": 500, **wanted})
    assert answer.status_code == 200, answer.text
    return [AuditEntry.model_validate(item) for item in answer.json()["items"]]


def test_a_change_says_who_did_what_from_where_to_what(service: ServiceDriver) -> None:
    ada = service.someone()
    answer = ada.post("/v1/jobs", json=example_spec())
    job_id = answer.json()["id"]
    (entry,) = log(service, verb="job")
    me = ada.get("/v1/me").json()
    assert (entry.actor, entry.actor_name, entry.key_id) == (me["id"], "Ada", me["key_id"])
    assert (entry.verb, entry.request, entry.target) == ("job.submit", "POST /v1/jobs", job_id)
    assert (entry.project, entry.outcome, entry.address) == ("default", "allowed", "testclient")
    assert entry.request_id == answer.headers["x-request-id"]
    assert abs(datetime.now(UTC) - entry.at) < timedelta(minutes=1)


def test_a_sign_out_names_the_person(service: ServiceDriver) -> None:
    browser = service.browser()
    assert browser.post("/v1/sessions", json={"key": ADMIN_KEY}).status_code == 201
    assert browser.delete("/v1/sessions").status_code == 204
    (entry,) = log(service, verb="close_session")
    assert (entry.actor, entry.actor_name) == ("person-administrator", "administrator")


@pytest.mark.slow
def test_reads_and_the_work_of_nodes_are_not_recorded(service: ServiceDriver) -> None:
    attempt = service.running()
    before = len(log(service))
    attempt.beat()
    attempt.commit(1)
    service.report()
    service.person.get("/v1/jobs")
    assert len(log(service)) == before


def test_what_was_set_is_told(service: ServiceDriver) -> None:
    service.project("vision")
    ada = service.person.post("/v1/people", json={"name": "Ada", "email": "ada@example.org"}).json()["id"]
    service.person.put("/v1/projects/vision/members/ada@example.org", json={"role": "maintainer"})
    service.person.patch(f"/v1/people/{ada}", json={"active": False})
    left, joined = log(service, verb="person.change")[0], log(service, verb="member.change")[0]
    assert (joined.target, joined.project, joined.detail) == (ada, "vision", {"role": "maintainer"})
    assert (left.target, left.detail) == (ada, {"active": "False"})


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_change_that_fails_leaves_no_entry(service: ServiceDriver) -> None:
    job_id = service.submit()
    before = log(service)
    assert service.person.delete("/v1/nodes/nobody").status_code == 404
    assert service.person.post("/v1/jobs", json={}).status_code == 422
    assert service.person.post(f"/v1/jobs/{job_id}/cancel").status_code == 200
    assert len(log(service)) == len(before) + 1


def test_refusals_are_recorded(service: ServiceDriver) -> None:
    viewer, job_id = service.someone("viewer"), service.submit()
    outsider = service.someone(name="Eve", project=service.project("other"))
    assert viewer.post(f"/v1/jobs/{job_id}/cancel").status_code == 403
    assert outsider.post(f"/v1/jobs/{job_id}/cancel").status_code == 404
    assert viewer.post("/v1/jobs", json=example_spec()).status_code == 403  # which the service decides
    assert service.client("pm_wrong").get("/v1/jobs").status_code == 401
    assert service.person.put("/v1/nodes/n", json={}).status_code == 403
    assert service.anyone.post("/v1/sessions", json={"key": "pm_wrong"}).status_code == 401
    found = [
        (one.actor_name, one.request, one.target, one.project, one.status)
        for one in reversed(log(service, outcome="refused"))
    ]
    assert found == [
        ("Ada", "POST /v1/jobs/{job_id}/cancel", job_id, "default", 403),
        ("Eve", "POST /v1/jobs/{job_id}/cancel", job_id, "default", 404),
        ("Ada", "POST /v1/jobs", None, None, 403),
        (None, "GET /v1/jobs", None, None, 401),
        (None, "PUT /v1/nodes/{node_id}", "n", None, 403),
        (None, "POST /v1/sessions", None, None, 401),
    ]


def test_who_only_has_no_key_is_no_news(service: ServiceDriver) -> None:
    service.anyone.get("/v1/jobs")
    service.anyone.get("/")
    assert log(service, outcome="refused") == []


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_signing_in_is_somebodys(service: ServiceDriver) -> None:
    service.anyone.post("/v1/sessions", json={"key": ADMIN_KEY})
    entry = log(service)[0]
    assert (entry.actor_name, entry.request) == ("administrator", "POST /v1/sessions")
    assert entry.key_id is not None


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_flood_of_strangers_is_counted(settings: Settings) -> None:
    service = ServiceDriver(settings.model_copy(update={"rate_stranger": "120/minute"}))
    stranger = service.client("pm_wrong")
    statuses = [stranger.get(f"/v1/jobs/{number}").status_code for number in range(200)]
    assert statuses.count(401) == 120
    assert statuses.count(429) == 80
    service.app.state.journal.stop()  # does not wait for the minute to end
    counts = [one.count for one in log(service, outcome="refused")]
    assert sum(counts) == 120
    assert len(counts) < 10
    service.close()


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_pages_and_filters(service: ServiceDriver) -> None:
    ada = service.someone()
    for number in range(5):
        ada.post("/v1/jobs", json=example_spec(name=f"job {number}"))
    first = service.person.get("/v1/audit", params={"verb": "job.submit", "limit": 3}).json()
    rest = service.person.get(
        "/v1/audit", params={"verb": "job.submit", "limit": 3, "before": first["next"]}
    ).json()
    assert [len(first["items"]), len(rest["items"]), rest["next"]] == [3, 2, None]
    seqs = [item["seq"] for page in (first, rest) for item in page["items"]]
    assert seqs == sorted(seqs, reverse=True)
    me = ada.get("/v1/me").json()["id"]
    assert len(log(service, actor="Ada")) == len(log(service, actor=me)) == 5
    middle = AuditEntry.model_validate(first["items"][1]).at
    later, earlier = (log(service, **{side: middle.isoformat()}) for side in ("since", "until"))
    assert len(later) + len(earlier) == len(log(service))
    assert log(service, until="2020-01-01T00:00:00") == []
    assert log(service, verb="jo") == []
    refused = service.person.get("/v1/audit", params={"since": "0001-01-01T00:00:00+14:00"})
    assert (refused.status_code, error_of(refused)["fields"][0]["path"]) == (422, "since")


READERS = {"maintainer": (403, 200), "member": (403, 403), "viewer": (403, 403)}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("rest", ["", "/export"])
def test_who_reads_it(service: ServiceDriver, rest: str) -> None:
    def asked(who: TestClient) -> tuple[int, int]:
        paths = (f"/v1/audit{rest}", f"/v1/projects/default/audit{rest}")
        return tuple(who.get(path).status_code for path in paths)  # type: ignore[return-value]

    assert {role: asked(service.someone(role)) for role in READERS} == READERS
    assert asked(service.someone(project=None, cluster_role="auditor")) == (200, 200)
    assert asked(service.someone("maintainer", project=service.project("other"))) == (403, 404)
    assert asked(service.anyone) == (401, 401)
    assert asked(service.client(NODE_TOKEN)) == (403, 403)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_projects_log_is_that_projects(service: ServiceDriver) -> None:
    service.project("other")
    service.submit()
    service.submit(project="other")
    for project in ("default", "other"):
        entries = log(service, f"/v1/projects/{project}/audit")
        assert {one.project for one in entries} == {project}
        lines = service.person.get(f"/v1/projects/{project}/audit/export").text.splitlines()
        assert [json.loads(line)["seq"] for line in lines] == [one.seq for one in reversed(entries)]


@pytest.mark.slow
def test_the_export_is_the_whole_chain_and_its_head_is_signed(service: ServiceDriver) -> None:
    for _ in range(3):
        service.submit()
    said = service.person.get("/v1/audit/head").json()
    assert said.keys() == {"seq", "hash", "signature"}  # all that programs of the version before take
    head = AuditHead.model_validate(said)
    answer = service.person.get("/v1/audit/export")
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    entries = [AuditEntry.model_validate_json(line) for line in answer.text.splitlines()]
    verdict = verify(entries, head)
    assert (verdict.broken, verdict.entries) == (None, head.seq)
    assert is_signed(head, service.app.state.key_pair.public_pem)
    kept = service.settings.secrets_dir / "audit-head.json"
    assert json.loads(kept.read_text()) == said


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_no_secret_is_in_it(service: ServiceDriver) -> None:
    """Whatever is sent where: in headers, bodies, queries, and in place of ids."""
    made = service.person.post("/v1/keys", json={"name": "script"}).json()["key"]
    code = service.person.post("/v1/login-codes").json()["code"]
    browser = TestClient(service.app, base_url="http://127.0.0.1")
    cookie = (
        browser.post("/v1/sessions", json={"code": code}).headers["set-cookie"].split("=")[1].split(";")[0]
    )
    spare = service.person.post("/v1/login-codes").json()["code"]
    token = service.running().token
    secrets = {
        made,
        code,
        cookie,
        spare,
        token,
        ADMIN_KEY,
        NODE_TOKEN,
        "pm_of-the-settings",
    }  # the last is short
    for secret in secrets:
        for who in (service.person, service.anyone, service.client(secret)):
            for method, path in (
                ("GET", f"/v1/jobs/{secret}"),
                ("POST", f"/v1/jobs/{secret}/cancel"),
                ("GET", f"/v1/projects/{secret}"),
                ("DELETE", f"/v1/keys/{secret}"),
                ("DELETE", f"/v1/datasets/{secret}?token={secret}"),
                ("GET", f"/v1/jobs?name={secret}"),
                ("POST", f"/v1/attempts/{secret}/claim"),
                ("POST", f"/login/{secret}"),
            ):
                who.request(method, path)
            who.post("/v1/sessions", json={"key": f"{secret}x"})
    service.app.state.journal.stop()
    text = service.person.get("/v1/audit/export").text
    assert text.count("\n") > 20
    for secret in secrets:
        assert secret not in text
