"""What members of a project, leaked keys and former members try, each from outside over REST."""

import secrets
from collections.abc import Callable, Iterator

import pytest

from powermean.contracts.identity import KeyRequest
from server.db.models import ApiKey, Person
from server.errors import UnauthenticatedError
from server.identity.keys import create_key
from server.identity.people import caller_of
from tests.support.service_driver import ServiceDriver, example_spec


@pytest.fixture
def projects(service: ServiceDriver) -> None:
    for name in ("ours", "theirs"):
        service.project(name)


def key_of(service: ServiceDriver, client, **wanted):
    """A client with a new key made by this one."""
    answer = client.post("/v1/keys", json={"name": "x"} | wanted)
    assert answer.status_code == 201, answer.text
    return service.client(answer.json()["key"])


# --- more rights than one has


def test_a_reading_key_of_an_administrator_makes_none_that_changes_things(service: ServiceDriver, projects):
    reads = key_of(service, service.person, role="auditor")
    for role in ("member", "maintainer", "admin"):
        assert reads.post("/v1/keys", json={"name": "x", "role": role}).status_code == 403
    for role in ("viewer", "auditor"):
        assert key_of(service, reads, role=role).post("/v1/jobs", json=example_spec()).status_code == 403


def test_a_reading_key_of_a_member_changes_nothing(service: ServiceDriver, projects):
    ada = service.someone("maintainer", project="ours")
    reads = key_of(service, ada, role="auditor")
    assert reads.get("/v1/me").json()["allowed"] == {"ours": "viewer"}
    assert reads.post("/v1/jobs", json=example_spec()).status_code == 403


@pytest.mark.parametrize("wanted", [{"role": "viewer"}, {"role": "member", "project": "ours"}])
def test_a_leaked_key_reaches_no_key_that_allows_more(service: ServiceDriver, projects, wanted):
    ada = service.someone(project="ours")
    me = ada.get("/v1/me").json()
    service.person.put(f"/v1/projects/theirs/members/{me['id']}", json={"role": "maintainer"})
    leaked = key_of(service, ada, **wanted)
    listed = leaked.get("/v1/keys").json()["items"]
    assert [key["id"] for key in listed] == [leaked.get("/v1/me").json()["key_id"]]
    assert leaked.delete(f"/v1/keys/{me['key_id']}").status_code == 404
    assert ada.get("/v1/me").status_code == 200
    assert leaked.delete(f"/v1/keys/{listed[0]['id']}").status_code == 204  # whoever finds it may end it


@pytest.mark.slow
def test_what_a_leaked_key_made_ends_with_it_if_wanted(service: ServiceDriver, projects):
    ada = service.someone(project="ours")
    other = key_of(service, ada)
    leaked = key_of(service, ada)
    child = key_of(service, leaked)
    browser = service.browser()
    code = child.post("/v1/login-codes").json()["code"]
    assert browser.post("/v1/sessions", json={"code": code}).status_code == 201
    started = service.anyone.post("/v1/device-codes", json={"client": "x"}).json()
    path = f"/v1/device-codes/{started['user_code']}/decision"
    assert browser.post(path, json={"approve": True}).status_code == 200
    claimed = service.anyone.post("/v1/device-codes/claim", json={"device_code": started["device_code"]})
    grandchild = service.client(claimed.json()["signed_in"]["key"]["key"])
    leaked_id = leaked.get("/v1/me").json()["key_id"]
    made_by = {one["id"]: one["made_by"] for one in ada.get("/v1/keys").json()["items"]}
    assert made_by[child.get("/v1/me").json()["key_id"]] == leaked_id
    assert ada.delete(f"/v1/keys/{leaked_id}").status_code == 204
    assert [one.get("/v1/me").status_code for one in (leaked, child, grandchild)] == [401, 200, 200]
    assert ada.delete(f"/v1/keys/{leaked_id}?cascade=true").status_code == 204
    for one in (child, grandchild, browser):
        assert one.get("/v1/me").status_code == 401
    assert other.get("/v1/me").status_code == ada.get("/v1/me").status_code == 200


def test_a_code_that_a_leaked_key_approved_makes_no_key_once_that_is_revoked(
    service: ServiceDriver, projects
):
    ada = service.someone(project="ours")
    leaked = key_of(service, ada)
    browser = service.browser()
    code = leaked.post("/v1/login-codes").json()["code"]
    assert browser.post("/v1/sessions", json={"code": code}).status_code == 201
    started = service.anyone.post("/v1/device-codes", json={"client": "x"}).json()
    path = f"/v1/device-codes/{started['user_code']}/decision"
    assert browser.post(path, json={"approve": True}).status_code == 200
    leaked_id = leaked.get("/v1/me").json()["key_id"]
    assert ada.delete(f"/v1/keys/{leaked_id}?cascade=true").status_code == 204
    claimed = service.anyone.post("/v1/device-codes/claim", json={"device_code": started["device_code"]})
    assert claimed.status_code == 401
    alive = [one["id"] for one in ada.get("/v1/keys").json()["items"] if one["revoked_at"] is None]
    assert alive == [ada.get("/v1/me").json()["key_id"]]


def test_the_last_administrators_key_stays_also_among_others(service: ServiceDriver):
    mine = service.person.get("/v1/me").json()["key_id"]
    key_of(service, service.person, role="admin")
    answer = service.person.delete(f"/v1/keys/{mine}?cascade=true")
    assert answer.status_code == 409
    assert service.person.delete(f"/v1/keys/{mine}").status_code == 204


def test_a_key_that_is_revoked_meanwhile_makes_none(service: ServiceDriver, projects):
    ada = service.someone(project="ours")
    leaked = key_of(service, ada)
    mine = leaked.get("/v1/me").json()["key_id"]
    with service.database.write() as session:
        caller = caller_of(session, *_person_and_key(session, mine))
    assert ada.delete(f"/v1/keys/{mine}").status_code == 204
    with service.database.write() as session, pytest.raises(UnauthenticatedError):
        create_key(session, caller, KeyRequest(name="x"))


def _person_and_key(session, key_id: str):
    key = session.get_one(ApiKey, key_id)
    return session.get_one(Person, key.person_id), key


def test_a_bound_key_tells_of_no_other_project(service: ServiceDriver, projects):
    ada = service.someone(project="theirs")
    me = ada.get("/v1/me").json()["id"]
    service.person.put(f"/v1/projects/ours/members/{me}", json={"role": "member"})
    key_of(service, ada, role="admin", project="theirs")
    leaked = key_of(service, ada, role="admin", project="ours")
    for path in ("/v1/me", "/v1/keys", "/v1/projects", "/v1/jobs", "/v1/datasets"):
        assert "theirs" not in leaked.get(path).text, path
    code = leaked.post("/v1/login-codes").json()["code"]
    browser = service.client("none")
    del browser.headers["Authorization"]
    assert browser.post("/v1/sessions", json={"code": code}).status_code == 201
    for path in ("/v1/me", "/v1/keys", "/v1/projects"):
        assert "theirs" not in browser.get(path).text, path


def test_a_bound_administrators_key_is_none_that_must_stay(service: ServiceDriver, projects):
    mine = service.person.get("/v1/me").json()["key_id"]
    key_of(service, service.person, role="admin", project="ours")
    assert service.person.delete(f"/v1/keys/{mine}").status_code == 409


def test_who_comes_back_gets_no_old_key_back(service: ServiceDriver):
    ada = service.someone()
    me = ada.get("/v1/me").json()["id"]
    for active in (False, True):
        assert service.person.patch(f"/v1/people/{me}", json={"active": active}).status_code == 200
    assert ada.get("/v1/me").status_code == 401


@pytest.mark.slow
def test_a_maintainer_turns_nobodys_jobs_to_their_project(service: ServiceDriver, projects):
    victim = service.someone(project="theirs")
    me = victim.get("/v1/me").json()["id"]
    service.person.put(f"/v1/projects/default/members/{me}", json={"role": "member"})
    service.person.delete(f"/v1/projects/theirs/members/{me}")  # it was the default one
    assert victim.post("/v1/jobs", json=example_spec()).json()["project"] == "default"
    thief = service.someone("maintainer", project="ours")
    assert thief.put(f"/v1/projects/ours/members/{me}", json={"role": "member"}).status_code == 200
    answer = victim.post("/v1/jobs", json=example_spec())
    assert answer.status_code == 422
    assert "which project" in answer.text


def test_removing_members_tells_nobody_who_has_an_account(service: ServiceDriver, projects):
    service.person.post("/v1/people", json={"name": "Bo", "email": "bo@example.org"})
    maintainer = service.someone("maintainer", project="ours")
    known, unknown = (
        maintainer.delete(f"/v1/projects/ours/members/{address}@example.org") for address in ("bo", "cy")
    )
    assert known.status_code == unknown.status_code == 404
    assert known.text.replace("bo@", "cy@") == unknown.text


# --- rights kept after they end


def dripping(body: bytes, meanwhile: Callable[[], object]) -> Iterator[bytes]:
    yield body[:5]
    meanwhile()
    yield body[5:]


@pytest.fixture
def every_body_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.routes.access.SLOW_BODY_S", 0.0)


def test_a_body_that_goes_on_keeps_no_right_that_has_ended(
    service: ServiceDriver, projects, every_body_is_slow
):
    maintainer = service.someone("maintainer", project="ours")
    maintainer.portal = None  # an event loop of its own: this one waits for the request in its body
    path = f"/v1/projects/ours/members/{maintainer.get('/v1/me').json()['id']}"
    content = dripping(b'{"role": "maintainer"}', lambda: service.person.delete(path))
    answer = maintainer.put(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == 404
    assert maintainer.get("/v1/projects/ours").status_code == 404


def test_an_upload_that_goes_on_adds_nothing_to_a_project_that_one_has_left(service: ServiceDriver, projects):
    ada = service.someone(project="ours")
    ada.portal = None  # as above
    member = f"/v1/projects/ours/members/{ada.get('/v1/me').json()['id']}"
    content = dripping(b'{"question": "1"}\n', lambda: service.person.delete(member))
    assert ada.post("/v1/datasets?project=ours", content=content).status_code == 422
    assert service.person.get("/v1/datasets").json()["items"] == []


# --- what another project has


def test_a_key_for_another_project_is_refused_like_one_for_none(service: ServiceDriver, projects):
    ada = service.someone(project="ours")
    theirs, missing = (
        ada.post("/v1/keys", json={"name": "x", "project": project}) for project in ("theirs", "nothing")
    )
    assert theirs.status_code == missing.status_code == 422
    assert theirs.text.replace("theirs", "nothing") == missing.text


@pytest.mark.slow
def test_an_idempotency_key_of_another_project_or_person_tells_nothing(service: ServiceDriver, projects):
    ada = service.someone(project="theirs")
    me = ada.get("/v1/me").json()["id"]
    service.person.put(f"/v1/projects/ours/members/{me}", json={"role": "member"})
    used = {"Idempotency-Key": secrets.token_hex(8)}
    first = ada.post("/v1/jobs", json=example_spec(project="theirs"), headers=used).json()["id"]
    leaked = key_of(service, ada, project="ours")
    for other in (leaked, service.someone(project="ours")):
        answer = other.post("/v1/jobs", json=example_spec(), headers=used)
        assert (answer.status_code, answer.json()["project"]) == (202, "ours")
    again = ada.post("/v1/jobs", json=example_spec(project="theirs"), headers=used)
    assert (again.status_code, again.json()["id"]) == (200, first)
