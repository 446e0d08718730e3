"""Command lines that a person at a browser signs in, over REST."""

from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import select, update

from server.db.models import DeviceSignIn
from tests.support.accounts import ADA, with_password
from tests.support.device_codes import asked, claim


def test_a_command_line_gets_a_key_once_the_person_agrees(service):
    browser = with_password(service)
    started = asked(service)
    assert claim(service, started).json() == {"state": "pending", "signed_in": None}
    typed = started["user_code"].lower().replace("-", " ")
    shown = browser.get(f"/v1/device-codes/{typed}").json()
    assert (shown["client"], shown["state"]) == ("powermean on a host", "pending")
    assert started["device_code"] not in str(shown)
    said = browser.post(f"/v1/device-codes/{typed}/decision", json={"approve": True, "project": "default"})
    assert said.json()["state"] == "approved"
    answer = claim(service, started).json()
    key = answer["signed_in"]["key"]
    assert answer["signed_in"]["person"] == "Ada"
    me = service.client(key["key"]).get("/v1/me").json()
    assert (me["name"], me["allowed"]) == ("Ada", {"default": "member"})
    assert (
        timedelta(days=89)
        < datetime.fromisoformat(key["expires_at"]) - datetime.now(UTC)
        < timedelta(days=91)
    )
    assert claim(service, started).status_code == 401
    assert browser.get(f"/v1/device-codes/{typed}").status_code == 404


def test_a_refused_command_line_gets_nothing_and_a_word_is_final(service):
    browser = with_password(service)
    started = asked(service)
    path = f"/v1/device-codes/{started['user_code']}/decision"
    assert browser.post(path, json={"approve": False}).json()["state"] == "denied"
    assert browser.post(path, json={"approve": True}).status_code == 409
    assert claim(service, started).json() == {"state": "denied", "signed_in": None}
    assert claim(service, started).status_code == 401


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_old_and_made_up_codes_are_nobodys(service):
    browser = with_password(service)
    started = asked(service)
    assert service.anyone.post("/v1/device-codes/claim", json={"device_code": "x"}).status_code == 401
    assert (
        service.anyone.post("/v1/device-codes/claim", json={"device_code": started["user_code"]}).status_code
        == 401
    )
    assert browser.get("/v1/device-codes/BBBB-BBBB").status_code == 404
    with service.database.write() as session:
        session.execute(update(DeviceSignIn).values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    assert claim(service, started).status_code == 401
    assert browser.get(f"/v1/device-codes/{started['user_code']}").status_code == 404
    asked(service)
    with service.database.read() as session:
        assert len(session.scalars(select(DeviceSignIn)).all()) == 1  # the old one is forgotten


def test_only_a_person_at_a_browser_confirms_and_no_other_sites_page(service):
    browser = with_password(service)
    started = asked(service)
    path = f"/v1/device-codes/{started['user_code']}/decision"
    assert service.person.post(path, json={"approve": True}).status_code == 403
    assert service.anyone.post(path, json={"approve": True}).status_code == 401
    evil = browser.post(path, json={"approve": True}, headers={"Origin": "https://evil.example"})
    assert evil.status_code == 403
    assert claim(service, started).json()["state"] == "pending"


def test_a_command_line_gets_no_more_than_the_session_that_confirms_it(service):
    made = service.person.post(
        "/v1/keys", json={"name": "k", "role": "viewer", "project": "default", "days": 2}
    )
    browser = service.browser()
    browser.post("/v1/sessions", json={"key": made.json()["key"]})
    started = asked(service)
    browser.post(f"/v1/device-codes/{started['user_code']}/decision", json={"approve": True, "days": 300})
    key = claim(service, started).json()["signed_in"]["key"]
    assert (key["role"], key["project"]) == ("viewer", "default")
    assert key["expires_at"] <= made.json()["expires_at"]
    assert service.client(key["key"]).post("/v1/jobs", json={}).status_code in (403, 422)


def test_a_leavers_word_does_not_count(service):
    browser = with_password(service)
    started = asked(service)
    browser.post(f"/v1/device-codes/{started['user_code']}/decision", json={"approve": True})
    service.person.patch(f"/v1/people/{ADA}", json={"active": False})
    assert claim(service, started).status_code == 401


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_codes_are_handed_out_and_tried_at_a_measured_pace(service):
    browser = with_password(service)
    statuses = [browser.get("/v1/device-codes/BBBB-BBBB").status_code for _ in range(21)]
    assert statuses == [404] * 20 + [429]
    made = [service.anyone.post("/v1/device-codes", json={"client": "x"}).status_code for _ in range(21)]
    assert made == [201] * 20 + [429]


def test_what_a_command_line_calls_itself_moves_no_cursor(service):
    for client in ("a\nb", "\x1b[2J", "", "x" * 121):
        assert service.anyone.post("/v1/device-codes", json={"client": client}).status_code == 422
