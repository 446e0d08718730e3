"""How long a project keeps things, how much it may store and which checkpoints stay: by forms, on the real
service."""

import pytest
from starlette.testclient import TestClient

from tests.support.html_text import parse
from tests.support.service_driver import ADMIN_KEY, ServiceDriver
from tests.support.stored_things import full_job

PAGE = "/projects/default/storage"


@pytest.fixture
def kind() -> str:
    """Pages look the same on every database."""
    return "sqlite"


@pytest.fixture
def admin(service: ServiceDriver) -> TestClient:
    return signed_in(service, ADMIN_KEY)


def signed_in(service: ServiceDriver, key: str) -> TestClient:
    browser = service.browser()
    browser.follow_redirects = False
    assert browser.post("/v1/sessions", json={"key": key}).status_code == 201
    return browser


def rules(service: ServiceDriver) -> dict[str, object]:
    found: dict[str, object] = service.person.get("/v1/projects/default/retention").json()
    return found


@pytest.mark.slow
def test_an_empty_field_keeps_for_ever(service: ServiceDriver, admin: TestClient) -> None:
    form = {"texts_days": "30", "tokens_days": "", "logs_days": "7", "checkpoints_last": "2"}
    assert (
        admin.post("/projects/default/retention", data=form | {"checkpoints_best": "true"}).status_code == 303
    )
    expected = {"texts_days": 30, "tokens_days": None, "logs_days": 7, "checkpoints_last": 2}
    assert rules(service) == expected | {"checkpoints_best": True}
    shown = parse(admin.get(PAGE).text)
    assert shown.one("input", name="texts_days").attributes["value"] == "30"
    assert "checked" in shown.one("input", name="checkpoints_best").attributes
    admin.post("/projects/default/retention", data={})
    assert set(rules(service).values()) == {None, False}


@pytest.mark.slow
def test_what_is_wrong_is_said_and_kept(service: ServiceDriver, admin: TestClient) -> None:
    answer = admin.post("/projects/default/retention", data={"texts_days": "soon"})
    assert answer.status_code == 422
    shown = parse(answer.text)
    assert shown.one("input", name="texts_days").attributes["value"] == "soon"
    assert "texts_days" in shown.one("ul", class_="fields").text
    answer = admin.post("/projects/default/storage/limit", data={"limit": "lots"})
    assert answer.status_code == 422
    assert "such as 500 GB" in answer.text
    assert rules(service)["texts_days"] is None


@pytest.mark.slow
def test_a_limit_is_a_size_and_may_be_taken_away(service: ServiceDriver, admin: TestClient) -> None:
    for text, limit in (("1.55 TB", 1_550_000_000_000), ("", None)):
        assert admin.post("/projects/default/storage/limit", data={"limit": text}).status_code == 303
        assert service.person.get("/v1/projects/default/storage").json()["limit"] == limit
        assert parse(admin.get(PAGE).text).one("input", name="limit").attributes["value"] == text


@pytest.mark.slow
def test_a_checkpoint_is_pinned_and_unpinned(service: ServiceDriver, admin: TestClient) -> None:
    job_id = full_job(service)
    address = f"/v1/jobs/{job_id}/checkpoints"
    step = service.person.get(address).json()["items"][0]["step"]
    for value, pinned in (("yes", True), ("no", False)):
        done = admin.post(f"/jobs/{job_id}/checkpoints/{step}/pin", data={"pinned": value})
        assert (done.status_code, done.headers["location"]) == (303, f"{PAGE}#largest")
        assert service.person.get(address).json()["items"][0]["pinned"] is pinned


@pytest.mark.slow
@pytest.mark.parametrize("role", ["viewer", "member", "maintainer"])
def test_pages_offer_what_one_may_do(service: ServiceDriver, role: str) -> None:
    full_job(service)
    someone = service.someone(role)
    key = someone.headers["Authorization"].removeprefix("Bearer ")
    shown = parse(signed_in(service, key).get(PAGE).text)
    actions = {form.attributes["action"].rpartition("/")[2] for form in shown.all("form")}
    expected = {"viewer": set(), "member": {"pin"}, "maintainer": {"pin", "retention"}}[role]
    assert actions - {"logout"} == expected
    assert bool([one for one in shown.all("a") if one.attributes["href"].endswith("/delete")]) is (
        role != "viewer"
    )


@pytest.mark.parametrize(
    "path",
    ["/projects/default/retention", "/projects/default/storage/limit", "/jobs/job-a/checkpoints/1/pin"],
)
def test_another_sites_forms_change_nothing(admin: TestClient, path: str) -> None:
    assert admin.post(path, data={}, headers={"Origin": "https://evil.example"}).status_code == 403
