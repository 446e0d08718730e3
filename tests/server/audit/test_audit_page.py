"""The audit log's page, over a real server."""

import pytest
from starlette.testclient import TestClient

from tests.support.html_text import parse
from tests.support.service_driver import ADMIN_KEY, ServiceDriver, example_spec


@pytest.fixture
def kind() -> str:
    """Pages do not know the database."""
    return "sqlite"


def browser(service: ServiceDriver, key: str) -> TestClient:
    made = TestClient(service.app, base_url="http://127.0.0.1", follow_redirects=False)
    assert made.post("/v1/sessions", json={"key": key}).status_code == 201
    return made


def rows(page: str) -> list[str]:
    return [row.words for row in parse(page).one("tbody").all("tr")]


@pytest.mark.slow
def test_who_did_what_is_shown_and_filtered(service: ServiceDriver) -> None:
    ada = service.someone(name="<b>Ada</b>")
    job_id = ada.post("/v1/jobs", json=example_spec()).json()["id"]
    ada.delete("/v1/nodes/n")
    admin = browser(service, ADMIN_KEY)
    page = admin.get("/audit").text
    assert "<b>Ada</b>" not in page
    refused, submitted = (row for row in rows(page) if row.startswith("<b>Ada</b>"))
    for part in ("cluster.change", "DELETE /v1/nodes/{node_id}", "refused", "403"):
        assert part in refused
    for part in ("Submit a job", "job.submit", "POST /v1/jobs", job_id, "default", "allowed"):
        assert part in submitted
    assert len(rows(admin.get("/audit?verb=job").text)) == 1
    assert len(rows(admin.get("/audit?outcome=refused&person=%3Cb%3EAda%3C/b%3E").text)) == 1
    assert "No entry matches." in admin.get("/audit?until=2020-01-01").text
    assert len(rows(admin.get("/audit?since=2020-01-01").text)) >= 4
    for wrong in ("since=yesterday", "until=9999-12-31", "outcome=maybe", "before=0"):
        assert admin.get(f"/audit?{wrong}").status_code == 400


@pytest.mark.slow
def test_a_maintainer_sees_the_projects_and_a_member_nothing(service: ServiceDriver) -> None:
    service.project("vision")
    service.submit(project="vision")
    service.submit()
    for role, status in (("maintainer", 200), ("member", 403)):
        client = service.someone(role, project="vision", name=role)
        key = client.post("/v1/keys", json={"name": "k", "role": "maintainer"}).json()["key"]
        own = browser(service, key)
        page = own.get("/projects/vision/audit")
        assert page.status_code == status
        assert own.get("/audit").status_code == 403
        assert own.get("/projects/default/audit").status_code == 404
        if status == 200:
            assert "Audit of vision" in page.text
            assert any("job.submit" in row for row in rows(page.text))
            assert "default" not in page.text


def test_pages_follow_each_other(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dashboard.audit.PAGE_SIZE", 2)
    for _ in range(3):
        service.submit()
    admin = browser(service, ADMIN_KEY)
    first = parse(admin.get("/audit?verb=job").text)
    older = first.one("a", rel="next").attributes["href"]
    second = parse(admin.get(older).text)
    assert len(second.one("tbody").all("tr")) == 1
    assert second.one("a", rel="first").attributes["href"] == "/audit?verb=job"


def test_who_is_not_signed_in_goes_there_first(service: ServiceDriver) -> None:
    answer = service.anyone.get("/audit", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/audit")
