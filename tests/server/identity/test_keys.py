"""Keys and tokens over REST: what a key shows, how long it lasts, and what each kind is good for."""

from datetime import UTC, datetime, timedelta

import pytest

from powermean.contracts.names import SESSION_COOKIE
from tests.support.accounts import with_password
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, error_of


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_key_shows_how_it_begins_when_it_ends_and_when_it_was_used(service):
    made = service.person.post("/v1/keys", json={"name": "k", "days": 30}).json()
    assert made["key"].startswith(made["prefix"])
    assert len(made["key"]) - len(made["prefix"]) > 36
    ends = datetime.fromisoformat(made["expires_at"])
    assert timedelta(days=29) < ends - datetime.now(UTC) < timedelta(days=31)
    key = service.client(made["key"])

    def used():
        listed = service.person.get("/v1/keys").json()["items"]
        return next(one["used_at"] for one in listed if one["id"] == made["id"])

    assert used() is None
    key.get("/v1/me")
    first = used()
    key.get("/v1/me")
    assert first == used() is not None


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_key_makes_none_that_outlives_it(service):
    short = service.person.post("/v1/keys", json={"name": "short", "role": "admin", "days": 1}).json()
    made = service.client(short["key"]).post("/v1/keys", json={"name": "long", "days": 400}).json()
    assert made["expires_at"] <= short["expires_at"]
    endless = service.client(short["key"]).post("/v1/keys", json={"name": "endless"}).json()
    assert endless["expires_at"] <= short["expires_at"]


def test_a_nodes_token_is_for_its_node(service):
    made = service.person.post("/v1/keys", json={"name": "gpu-1", "role": "node", "node": "gpu-1"}).json()
    bound = service.client(made["key"])
    job_id = service.started()  # on node-1
    report = {"hostname": "h", "instance": "i", "version": "0"}
    assert bound.put("/v1/nodes/gpu-1", json=report).status_code == 200
    refused = bound.put("/v1/nodes/node-1", json=report)
    assert refused.status_code == 403
    assert "only for node gpu-1" in error_of(refused)["message"]
    assert bound.post(f"/v1/attempts/{job_id}.1/claim").status_code == 403
    assert service.node.post(f"/v1/attempts/{job_id}.1/claim").status_code == 200
    assert service.person.post("/v1/keys", json={"name": "k", "node": "gpu-1"}).status_code == 422


@pytest.mark.slow
def test_no_token_passes_for_another_kind(service):
    """An attempt's token is no person's key, a session no bearer key, a key no session, a code neither."""
    attempt = service.running()
    browser = with_password(service)
    session = browser.cookies[SESSION_COOKIE]
    code = service.person.post("/v1/login-codes").json()["code"]
    device = service.anyone.post("/v1/device-codes", json={"client": "x"}).json()["device_code"]
    for secret in (attempt.token, session, code, device):
        assert service.client(secret).get("/v1/me").status_code == 401
        assert service.browser().post("/v1/sessions", json={"key": secret}).status_code in (401, 422)
    for secret in (attempt.token, ADMIN_KEY, NODE_TOKEN, code, device):
        cookie = service.browser()
        cookie.cookies.set(SESSION_COOKIE, secret)
        assert cookie.get("/v1/me").status_code == 401
    for secret in (attempt.token, session, ADMIN_KEY, device):
        assert service.browser().post("/v1/sessions", json={"code": secret}).status_code in (401, 422)
        if secret != device:
            answer = service.anyone.post("/v1/device-codes/claim", json={"device_code": secret})
            assert answer.status_code in (401, 422)
