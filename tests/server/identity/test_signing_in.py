"""Invitations, addresses and passwords over REST, and guesses that are slowed down."""

import pytest
from argon2 import Type
from sqlalchemy import select

from powermean.contracts.names import SESSION_COOKIE
from server.db.models import Person
from server.identity import passwords
from server.identity.throttle import Throttle
from tests.support.accounts import ADA, PASSWORD, invited, person, sign_in, with_password
from tests.support.service_driver import error_of


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
