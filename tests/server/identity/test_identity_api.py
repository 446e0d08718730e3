"""Keys, browser sessions and attempt tokens over REST: who may do what."""

import logging
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from powermean.contracts.names import SESSION_COOKIE
from powermean.tokens import Verb, ensure_key_pair, sign_attempt_token
from server.db.models import ApiKey, BrowserSession
from server.identity.keys import WeakBootstrapKeyError, bootstrap_keys, digest
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, error_of, example_spec

HERE = {"Origin": "http://127.0.0.1"}


def new_key(service, role="member"):
    answer = service.person.post("/v1/keys", json={"name": "Ada", "role": role})
    assert answer.status_code == 201, answer.text
    return answer.json()


def signed_in(service, **proof):
    """A browser, with its cookie."""
    browser = service.client("none")
    del browser.headers["Authorization"]
    answer = browser.post("/v1/sessions", json=proof, headers=HERE)
    assert answer.status_code == 201, answer.text
    return browser, answer


def test_nobody_is_let_in_without_a_credential(service):
    for path in ("/v1/jobs", "/v1/keys", "/v1/datasets", "/v1/nodes", "/metrics", "/v1/jobs/x/events"):
        answer = service.anyone.get(path)
        assert answer.status_code == 401, path
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert service.client("pm_wrong").get(path).status_code == 401
    assert service.anyone.get("/healthz").json() == {"status": "ok"}


def test_a_new_key_works_until_it_is_revoked_and_is_stored_hashed(service):
    made = new_key(service)
    assert made["key"].startswith("pm_")
    assert len(made["key"]) == len("pm_") + 43
    person = service.client(made["key"])
    assert person.get("/v1/jobs").status_code == 200
    with service.database.read() as session:
        stored = session.get(ApiKey, made["id"])
        assert stored.key_sha256 == digest(made["key"])
    listed = service.person.get("/v1/keys")
    assert made["key"] not in listed.text
    assert made["id"] in {key["id"] for key in listed.json()["items"]}
    for _ in range(2):
        assert service.person.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert person.get("/v1/jobs").status_code == 401


@pytest.mark.slow
def test_everybody_manages_their_own_keys_alone(service):
    theirs = new_key(service)
    ada = service.someone()
    mine = ada.post("/v1/keys", json={"name": "laptop"}).json()
    listed = ada.get("/v1/keys").json()["items"]
    assert {key["owner"] for key in listed} == {"Ada"}
    assert mine["id"] in {key["id"] for key in listed}
    assert ada.delete(f"/v1/keys/{theirs['id']}").status_code == 404
    assert ada.delete(f"/v1/keys/{mine['id']}").status_code == 204
    assert service.client(mine["key"]).get("/v1/jobs").status_code == 401
    for wanted in ({"role": "node"}, {"person_id": "person-administrator"}):
        assert ada.post("/v1/keys", json={"name": "x"} | wanted).status_code == 403


def test_a_key_makes_none_that_allows_more_than_itself(service):
    service.project("team-a")
    viewer = service.client(new_key(service, "viewer")["key"])
    assert viewer.post("/v1/keys", json={"name": "x", "role": "viewer"}).status_code == 201
    assert viewer.post("/v1/keys", json={"name": "x", "role": "member"}).status_code == 403
    wanted = {"name": "x", "role": "member", "project": "team-a"}
    bound = service.client(service.person.post("/v1/keys", json=wanted).json()["key"])
    assert bound.post("/v1/keys", json=wanted).status_code == 201
    assert bound.post("/v1/keys", json=wanted | {"project": None}).status_code == 403
    assert bound.get("/v1/me").json()["allowed"] == {"team-a": "member"}
    assert bound.get("/v1/people").status_code == 403


def test_who_leaves_is_out_at_once_and_what_they_made_stays(service):
    ada = service.someone()
    job_id = ada.post("/v1/jobs", json=example_spec()).json()["id"]
    code = ada.post("/v1/login-codes").json()["code"]
    browser, _ = signed_in(service, code=code)
    me = ada.get("/v1/me").json()
    assert (me["name"], me["projects"], me["allowed"]) == (
        "Ada",
        {"default": "member"},
        {"default": "member"},
    )
    gone = service.person.patch(f"/v1/people/{me['id']}", json={"active": False})
    assert gone.json()["active"] is False
    assert ada.get("/v1/me").status_code == browser.get("/v1/me").status_code == 401
    assert service.person.get(f"/v1/jobs/{job_id}").json()["created_by"] == me["id"]
    mine = service.person.get("/v1/me").json()["id"]
    assert service.person.patch(f"/v1/people/{mine}", json={"active": False}).status_code == 409


def test_an_invitation_signs_a_person_in_without_a_key(service):
    made = service.person.post("/v1/people", json={"name": "Bo", "email": " Bo@Example.org "}).json()
    assert made["email"] == "bo@example.org"
    assert service.person.post("/v1/people", json={"name": "B", "email": "BO@example.org"}).status_code == 409
    code = service.person.post("/v1/people/bo@example.org/login-codes").json()["code"]
    browser, answer = signed_in(service, code=code)
    assert (answer.json()["name"], answer.json()["role"]) == ("Bo", "viewer")
    assert browser.get("/v1/jobs").json()["items"] == []
    assert browser.get("/v1/projects").json()["items"] == []
    assert browser.post("/v1/jobs", json=example_spec(), headers=HERE).status_code == 422  # in which project?


def test_the_settings_key_is_an_administrators(service):
    me = service.person.get("/v1/me").json()
    assert (me["id"], me["cluster_role"], me["default_project"]) == (
        "person-administrator",
        "admin",
        "default",
    )


@pytest.mark.slow
def test_a_refusal_says_whom_to_ask(service):
    maintainer, member = service.someone("maintainer"), service.someone("member")
    limit = "/v1/projects/default/storage/limit"
    assert error_of(maintainer.put(limit, json={"bytes": 1}))["remedy"] == "Ask an administrator."
    title = {"title": "x"}
    refused = member.patch("/v1/projects/default", json=title)
    assert error_of(refused)["remedy"] == "Ask one of its maintainers."


def test_the_last_administrators_key_stays(service):
    mine = next(k for k in service.person.get("/v1/keys").json()["items"] if k["role"] == "admin")
    assert service.person.delete(f"/v1/keys/{mine['id']}").status_code == 409
    new_key(service, "admin")
    assert service.person.delete(f"/v1/keys/{mine['id']}").status_code == 204


def test_nodes_and_people_have_doors_of_their_own(service):
    assert service.node.get("/v1/jobs").status_code == 403
    assert service.person.put("/v1/nodes/n", json={"hostname": "n", "version": "0"}).status_code == 403
    assert service.anyone.put("/v1/nodes/n", json={"hostname": "n", "version": "0"}).status_code == 401
    assert service.anyone.post("/v1/sessions", json={"key": NODE_TOKEN}).status_code == 401


@pytest.mark.slow
def test_an_attempts_token_is_for_reporting_on_itself(service):
    attempt = service.running()
    mine = service.app.state.key_pair.private_pem
    path = f"/v1/attempts/{attempt.id}/metrics"

    def post(token):
        return service.anyone.post(path, json={"rows": []}, headers={"Authorization": f"Bearer {token}"})

    job_id = attempt.claim.job_id
    assert post(attempt.token).status_code == 204
    assert service.anyone.post(path, json={"rows": []}).status_code == 401
    assert post(ADMIN_KEY).status_code == 401
    assert post(sign_attempt_token(mine, job_id, 1, [Verb.GENERATE])).status_code == 403
    assert post(sign_attempt_token(mine, job_id, 2)).status_code == 403
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    assert post(sign_attempt_token(mine, job_id, 1, now=hour_ago)).status_code == 401


def test_another_servers_token_is_none(service, tmp_path):
    attempt = service.running()
    forged = sign_attempt_token(ensure_key_pair(tmp_path / "other").private_pem, attempt.claim.job_id, 1)
    attempt.token = forged
    assert attempt.post("metrics", {"rows": []}).status_code == 401


def test_a_browser_signs_in_by_key_and_out_again(service):
    browser, answer = signed_in(service, key=ADMIN_KEY)
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert "Secure" not in cookie
    assert answer.json()["role"] == "admin"
    assert ADMIN_KEY not in answer.text
    assert browser.get("/v1/jobs").status_code == 200
    secret = browser.cookies[SESSION_COOKIE]
    with service.database.read() as session:
        assert session.scalars(select(BrowserSession.id_sha256)).all() == [digest(secret)]
    assert browser.delete("/v1/sessions", headers=HERE).status_code == 204
    browser.cookies.set(SESSION_COOKIE, secret)
    assert browser.get("/v1/jobs").status_code == 401


def test_over_https_the_cookie_is_secure(service):
    browser = service.client("none")
    browser.base_url = "https://127.0.0.1"
    answer = browser.post("/v1/sessions", json={"key": ADMIN_KEY})
    assert "Secure" in answer.headers["set-cookie"]


def test_a_code_signs_one_browser_in_once(service):
    code = service.person.post("/v1/login-codes").json()["code"]
    browser, _ = signed_in(service, code=code)
    assert browser.get("/v1/jobs").status_code == 200
    again = service.anyone.post("/v1/sessions", json={"code": code})
    assert again.status_code == 401
    assert "code" in error_of(again)["message"]
    assert service.client(code).get("/v1/jobs").status_code == 401
    service.anyone.cookies.set(SESSION_COOKIE, service.person.post("/v1/login-codes").json()["code"])
    assert service.anyone.get("/v1/jobs").status_code == 401


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_old_codes_and_sessions_are_over(service):
    code = service.person.post("/v1/login-codes").json()["code"]
    browser, _ = signed_in(service, key=ADMIN_KEY)
    with service.database.write() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(BrowserSession).values(expires_at=past))
    assert service.anyone.post("/v1/sessions", json={"code": code}).status_code == 401
    assert browser.get("/v1/jobs").status_code == 401


def test_revoking_a_key_ends_its_sessions_and_codes(service):
    made = new_key(service)
    browser, _ = signed_in(service, key=made["key"])
    code = service.client(made["key"]).post("/v1/login-codes").json()["code"]
    assert service.person.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert browser.get("/v1/jobs").status_code == 401
    assert service.anyone.post("/v1/sessions", json={"code": code}).status_code == 401


@pytest.mark.parametrize(
    "origin",
    [
        None,
        "null",
        "http://evil.example",
        "http://127.0.0.1:1",
        "http://127.0.0.1.evil.example",
        "ftp://127.0.0.1",
    ],
)
def test_another_sites_page_changes_nothing_with_the_cookie(service, origin):
    browser, _ = signed_in(service, key=ADMIN_KEY)
    headers = {} if origin is None else {"Origin": origin}
    assert browser.post("/v1/login-codes", headers=headers).status_code == 403
    assert browser.delete("/v1/sessions", headers=headers).status_code == 403
    assert browser.get("/v1/jobs", headers=headers).status_code == 200
    assert browser.post("/v1/login-codes", headers=HERE).status_code == 201
    if origin is not None:
        answer = browser.post("/v1/sessions", json={"key": ADMIN_KEY}, headers=headers)
        assert answer.status_code == 403


@pytest.mark.parametrize("proof", [{}, {"key": "x", "code": "y"}, {"key": ""}, {"password": "x"}])
def test_a_sign_in_needs_one_proof(service, proof):
    assert service.anyone.post("/v1/sessions", json=proof).status_code == 422


def test_the_settings_keys_are_taken_in_once_and_stay_revoked(service):
    settings = service.settings
    with service.database.write() as session:
        bootstrap_keys(session, settings.bootstrap_admin_key, settings.bootstrap_node_token)
    keys = service.person.get("/v1/keys").json()["items"]
    assert sorted(key["role"] for key in keys) == ["admin", "node"]
    other = service.client(new_key(service, "admin")["key"])
    mine = next(key["id"] for key in keys if key["role"] == "admin")
    assert other.delete(f"/v1/keys/{mine}").status_code == 204
    with service.database.write() as session:
        bootstrap_keys(session, settings.bootstrap_admin_key, settings.bootstrap_node_token)
    assert service.person.get("/v1/jobs").status_code == 401


def test_a_guessable_key_of_the_settings_is_refused(service):
    weak = type(service.settings)(bootstrap_admin_key="admin")
    with (
        service.database.write() as session,
        pytest.raises(WeakBootstrapKeyError, match="BOOTSTRAP_ADMIN_KEY"),
    ):
        bootstrap_keys(session, weak.bootstrap_admin_key, None)


@pytest.mark.slow
def test_no_secret_reaches_a_log(service, caplog):
    caplog.set_level(logging.DEBUG)
    made = new_key(service)
    code = service.person.post("/v1/login-codes").json()["code"]
    browser, _ = signed_in(service, code=code)
    service.anyone.get(f"/login/{code}")
    password = "a password that is not logged"
    service.anyone.post("/v1/sessions", json={"email": "ada@example.org", "password": password})
    device = service.anyone.post("/v1/device-codes", json={"client": "x"}).json()["device_code"]
    service.anyone.post("/v1/device-codes/claim", json={"device_code": device})
    service.anyone.get("/login/oidc/callback?code=secret-code&state=secret-state")
    service.client("pm_wrong_but_secret").get("/v1/jobs")
    test_clients = ("httpx", "httpx2", "httpcore")
    lines = [r.getMessage() for r in caplog.records if r.name.split(".")[0] not in test_clients]
    ours = "\n".join(lines)
    secrets = (ADMIN_KEY, made["key"], code, browser.cookies[SESSION_COOKIE], "pm_wrong_but_secret")
    for secret in (*secrets, password, device, "secret-code"):
        assert secret not in ours
