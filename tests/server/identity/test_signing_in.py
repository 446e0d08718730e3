"""Passwords, invitations, sessions and command lines over REST."""

from datetime import UTC, datetime, timedelta

import pytest
from argon2 import Type
from sqlalchemy import select, update

from server.db.models import ApiKey, BrowserSession, DeviceSignIn, Person
from server.identity import passwords
from server.identity.keys import digest
from server.identity.throttle import Throttle
from server.routes.access import SESSION_COOKIE
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, ServiceDriver, error_of

HERE = {"Origin": "http://127.0.0.1"}
ADA = "ada@example.org"
PASSWORD = "correct horse battery"


def person(service, email=ADA, **more):
    answer = service.person.post(
        "/v1/people", json={"name": "Ada", "email": email, "project": "default"} | more
    )
    assert answer.status_code == 201, answer.text
    return answer.json()


def invited(service, email=ADA):
    """A browser that followed an invitation."""
    code = service.person.post(f"/v1/people/{email}/login-codes").json()["code"]
    browser = service.browser()
    assert browser.post("/v1/sessions", json={"code": code}).status_code == 201
    return browser


def with_password(service, email=ADA):
    person(service, email)
    browser = invited(service, email)
    answer = browser.put("/v1/me/password", json={"password": PASSWORD})
    assert answer.status_code == 200, answer.text
    return browser


def sign_in(service, email=ADA, password=PASSWORD):
    browser = service.browser()
    return browser, browser.post("/v1/sessions", json={"email": email, "password": password})


def test_an_invitation_lets_a_person_set_a_password_and_sign_in_with_it(service):
    with_password(service)
    browser, answer = sign_in(service)
    assert answer.status_code == 201
    assert answer.json()["name"] == "Ada"
    assert answer.json()["method"] == "password"
    assert browser.get("/v1/me").json()["email"] == ADA
    with service.database.read() as session:
        stored = session.scalars(select(Person.password_hash).where(Person.email == ADA)).one()
    assert stored.startswith("$argon2id$")
    assert PASSWORD not in stored


def test_the_settings_administrator_gets_an_address_and_signs_in_with_it(service):
    address = "/v1/people/person-administrator"
    changed = service.person.patch(address, json={"email": "Root@Example.org"})
    assert changed.json()["email"] == "root@example.org"
    browser = invited(service, "root@example.org")
    assert browser.put("/v1/me/password", json={"password": PASSWORD}).status_code == 200
    assert sign_in(service, "root@example.org")[1].json()["role"] == "admin"


def test_an_address_belongs_to_one_account(service):
    person(service)
    person(service, "bob@example.org")
    answer = service.person.patch("/v1/people/bob@example.org", json={"email": ADA, "name": "Bob"})
    assert answer.status_code == 409
    assert error_of(answer)["message"] == f"somebody with the e-mail address {ADA} is here already"
    names = {one["email"]: one["name"] for one in service.person.get("/v1/people").json()["items"]}
    assert names["bob@example.org"] == "Ada"  # nothing of it was changed
    same = service.person.patch(f"/v1/people/{ADA}", json={"email": ADA})
    assert same.status_code == 200


def test_an_invitation_works_once(service):
    person(service)
    code = service.person.post(f"/v1/people/{ADA}/login-codes").json()["code"]
    assert service.browser().post("/v1/sessions", json={"code": code}).status_code == 201
    assert service.browser().post("/v1/sessions", json={"code": code}).status_code == 401
    stranger_with_code = service.browser()
    other = service.person.post(f"/v1/people/{ADA}/login-codes").json()["code"]
    stranger_with_code.cookies.set(SESSION_COOKIE, other)
    assert stranger_with_code.get("/v1/me").status_code == 401


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_changed_password_needs_the_present_one_and_ends_all_sessions(service):
    elsewhere = with_password(service)
    browser, _ = sign_in(service)
    new = "another long one"
    for current in (None, "", "wrong", PASSWORD + " "):
        refused = browser.put("/v1/me/password", json={"password": new, "current": current})
        assert refused.status_code == 422
        assert error_of(refused)["fields"][0]["path"] == "current"
    before = browser.cookies[SESSION_COOKIE]
    assert browser.put("/v1/me/password", json={"password": new, "current": PASSWORD}).status_code == 200
    assert browser.cookies[SESSION_COOKIE] != before
    assert browser.get("/v1/me").status_code == 200
    assert elsewhere.get("/v1/me").status_code == 401
    assert sign_in(service)[1].status_code == 401
    assert sign_in(service, password=new)[1].status_code == 201


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_an_invitation_sets_one_password_and_no_second_one(service):
    browser = with_password(service)
    again = browser.put("/v1/me/password", json={"password": "another long one"})
    assert again.status_code == 422


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_neither_a_key_nor_a_link_of_ones_own_sets_a_first_password(service):
    made = person(service)
    key = service.person.post("/v1/keys", json={"name": "k", "person_id": made["id"]}).json()["key"]
    assert service.client(key).put("/v1/me/password", json={"password": PASSWORD}).status_code == 403
    browser = service.browser()
    browser.post("/v1/sessions", json={"key": key})
    assert browser.put("/v1/me/password", json={"password": PASSWORD}).status_code == 422
    code = service.client(key).post("/v1/login-codes").json()["code"]
    browser.post("/v1/sessions", json={"code": code})
    assert browser.put("/v1/me/password", json={"password": PASSWORD}).status_code == 422


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
@pytest.mark.parametrize("bad", ["short", "aaaaaaaaaaaaaa", "ada@example.org", "gro.elpmaxe@ada", "x" * 201])
def test_passwords_that_are_guessed_first_are_refused(service, bad):
    person(service)
    assert invited(service).put("/v1/me/password", json={"password": bad}).status_code == 422


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_password_is_the_same_from_every_keyboard(service):
    person(service)
    invited(service).put("/v1/me/password", json={"password": "ﬁne Ångström pass"})
    assert sign_in(service, password="fine A\u030angstro\u0308m pass")[1].status_code == 201


def test_a_hash_takes_the_work_that_rfc_9106_asks_of_servers_with_little_memory(parameters_of_passwords):
    found = parameters_of_passwords
    assert (found.type, found.memory_cost, found.time_cost) == (Type.ID, 64 * 1024, 3)


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_wrong_passwords_and_unknown_people_get_one_answer_for_the_same_work(service, monkeypatch):
    with_password(service)
    person(service, "nopass@example.org")
    gone = person(service, "gone@example.org")
    service.person.patch(f"/v1/people/{gone['id']}", json={"active": False})
    hashed = []
    verify = passwords.HASHER.verify
    monkeypatch.setattr(
        passwords,
        "HASHER",
        _Counting(passwords.HASHER, lambda *given: hashed.append(given) or verify(*given)),
    )
    answers = set()
    for email in (
        ADA,
        "nobody@example.org",
        "nopass@example.org",
        "gone@example.org",
        "no address",
        "é@x.org",
    ):
        _, answer = sign_in(service, email, "wrong wrong wrong")
        assert answer.status_code == 401
        answers.add(answer.text)
        assert "set-cookie" not in answer.headers
    assert len(answers) == 1
    assert len(hashed) == 6
    assert len({stored.rsplit("$", 2)[0] for stored, _ in hashed}) == 1  # the same parameters


class _Counting:
    def __init__(self, hasher, verify):
        self.verify = verify
        self.hash = hasher.hash
        self.check_needs_rehash = hasher.check_needs_rehash


@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_addresses_are_compared_without_case_and_without_look_alikes(service):
    with_password(service, "kate@example.org")
    for same in ("kate@example.org", " Kate@Example.ORG "):
        assert sign_in(service, same)[1].status_code == 201
    for other in (
        "\u212aate@example.org",
        "ｋate@example.org",
        "k\u0430te@example.org",
        "kate@example.org\u200b",
    ):
        assert sign_in(service, other)[1].status_code == 401
        taken = service.person.post("/v1/people", json={"name": "x", "email": other})
        assert taken.status_code == 422, other
    assert (
        service.person.post("/v1/people", json={"name": "x", "email": "KATE@example.org"}).status_code == 409
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_guessing_is_slowed_down_by_account_known_or_not(service):
    with_password(service)
    for email in (ADA, "nobody@example.org"):
        statuses = [sign_in(service, email, "wrong wrong wrong")[1].status_code for _ in range(12)]
        assert statuses == [401] * 10 + [429] * 2
    _, answer = sign_in(service)  # the right one has to wait, too
    assert answer.status_code == 429
    assert 0 < int(answer.headers["Retry-After"]) <= 300
    assert error_of(answer)["code"] == "too_many_requests"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_guessing_is_slowed_down_by_address(service):
    statuses = [service.browser().post("/v1/sessions", json={"code": f"c{n}"}).status_code for n in range(61)]
    assert statuses == [401] * 60 + [429]
    assert service.person.get("/v1/me").status_code == 200


def test_right_passwords_are_not_counted_for_ever(settings):
    throttle = Throttle(settings)
    for _ in range(30):
        throttle.count("account", ADA)
        throttle.forgive("account", ADA)


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


# Command lines


def asked(service, client="powermean on a host"):
    answer = service.anyone.post("/v1/device-codes", json={"client": client})
    assert answer.status_code == 201, answer.text
    return answer.json()


def claim(service, started):
    return service.anyone.post("/v1/device-codes/claim", json={"device_code": started["device_code"]})


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
