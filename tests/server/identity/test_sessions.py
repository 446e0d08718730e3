"""A browser's sessions over REST: how they begin, who sees them, and how they end."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from powermean.contracts.names import SESSION_COOKIE
from server.db.models import ApiKey, BrowserSession
from server.identity.keys import digest
from tests.support.accounts import ADA, sign_in, with_password
from tests.support.service_driver import ADMIN_KEY, ServiceDriver


def test_signing_in_ends_what_the_browser_was_given_before(service):
    """Session fixation: a cookie that somebody planted never becomes a person's session."""
    with_password(service)
    planted, _ = sign_in(service)
    secret = planted.cookies[SESSION_COOKIE]
    victim = service.browser()
    victim.cookies.set(SESSION_COOKIE, secret)
    answer = victim.post("/v1/sessions", json={"key": ADMIN_KEY})
    assert answer.status_code == 201
    assert secret not in answer.headers["set-cookie"]
    assert planted.get("/v1/me").status_code == 401
    made_up = service.browser()
    made_up.cookies.set(SESSION_COOKIE, "chosen by an attacker")
    made_up.post("/v1/sessions", json={"key": ADMIN_KEY})
    other = service.browser()
    other.cookies.set(SESSION_COOKIE, "chosen by an attacker")
    assert other.get("/v1/me").status_code == 401


def test_ones_sessions_are_listed_and_ended_by_oneself_alone(service):
    first = with_password(service)
    second, _ = sign_in(service)
    listed = first.get("/v1/me/sessions").json()["items"]
    assert sorted(one["current"] for one in listed) == [False, True]
    assert {one["method"] for one in listed} == {"password"}
    assert first.cookies[SESSION_COOKIE] not in str(listed)
    theirs = next(one for one in listed if not one["current"])
    assert service.person.delete(f"/v1/me/sessions/{theirs['id']}").status_code == 404
    assert first.delete(f"/v1/me/sessions/{theirs['id']}").status_code == 204
    assert second.get("/v1/me").status_code == 401
    assert first.delete(f"/v1/me/sessions/{theirs['id']}").status_code == 404
    assert first.delete("/v1/me/sessions/" + digest("x")[:24]).status_code == 404


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_session_is_known_to_every_server_and_its_end_at_once(service, settings):
    other = ServiceDriver(settings)
    code = service.person.post("/v1/login-codes").json()["code"]
    browser = other.browser()
    assert browser.post("/v1/sessions", json={"code": code}).status_code == 201
    here = service.browser()
    here.cookies.set(SESSION_COOKIE, browser.cookies[SESSION_COOKIE])
    assert here.get("/v1/me").status_code == 200
    assert browser.delete("/v1/sessions").status_code == 204
    assert here.get("/v1/me").status_code == 401
    assert service.browser().post("/v1/sessions", json={"code": code}).status_code == 401
    other.close()


def age(service, **values):
    with service.database.write() as session:
        session.execute(update(BrowserSession).values(**values))


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_session_ends_unused_and_use_keeps_it_open_up_to_its_end(service):
    browser = with_password(service)
    now = datetime.now(UTC)
    used = now - timedelta(minutes=6)
    age(service, used_at=used, expires_at=now + timedelta(minutes=1))
    assert browser.get("/v1/me").status_code == 200
    with service.database.read() as session:
        row = session.scalars(select(BrowserSession)).one()
    assert row.used_at >= now
    assert row.expires_at - row.used_at == timedelta(seconds=service.settings.session_idle_s)
    assert browser.get("/v1/me").status_code == 200
    with service.database.read() as session:
        assert session.scalars(select(BrowserSession.used_at)).one() == row.used_at  # written once in a while
    age(service, used_at=used, ends_at=now + timedelta(minutes=2))
    assert browser.get("/v1/me").status_code == 200
    with service.database.read() as session:
        assert session.scalars(select(BrowserSession.expires_at)).one() <= now + timedelta(minutes=2)
    age(service, expires_at=now - timedelta(seconds=1))
    assert browser.get("/v1/me").status_code == 401


def test_who_leaves_is_out_at_once_and_every_key_with_them(service):
    browser = with_password(service)
    key = browser.post("/v1/keys", json={"name": "laptop"}).json()["key"]
    link = service.client(key).post("/v1/login-codes").json()["code"]
    assert service.client(key).get("/v1/me").status_code == 200
    service.person.patch(f"/v1/people/{ADA}", json={"active": False})
    assert browser.get("/v1/me").status_code == 401
    assert service.client(key).get("/v1/me").status_code == 401
    assert service.browser().post("/v1/sessions", json={"code": link}).status_code == 401
    assert service.browser().post("/v1/sessions", json={"key": key}).status_code == 401
    assert sign_in(service)[1].status_code == 401


def test_a_session_ends_with_the_key_that_opened_it(service):
    made = service.person.post("/v1/keys", json={"name": "k", "role": "viewer", "days": 1}).json()
    browser = service.browser()
    browser.post("/v1/sessions", json={"key": made["key"]})
    assert browser.get("/v1/me").status_code == 200
    with service.database.write() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(expires_at=past))
    assert browser.get("/v1/me").status_code == 401
    assert service.client(made["key"]).get("/v1/me").status_code == 401
