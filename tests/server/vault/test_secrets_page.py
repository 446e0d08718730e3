"""The pages on which people set and remove secrets, over the real API."""

import pytest
from starlette.testclient import TestClient

from tests.support.html_text import parse
from tests.support.service_driver import ADMIN_KEY, ServiceDriver, example_spec

VALUE = "hf_0123456789abcdefghij"
TEAM, OWN = "/projects/default/secrets", "/me/secrets"
ORIGIN = {"Origin": "http://127.0.0.1"}


@pytest.fixture
def browser(service: ServiceDriver) -> TestClient:
    """The administrator's."""
    browser = TestClient(service.app, base_url="http://127.0.0.1", headers=ORIGIN, follow_redirects=False)
    assert browser.post("/login", data={"key": ADMIN_KEY}).status_code == 303
    return browser


@pytest.mark.slow
@pytest.mark.parametrize(("address", "named"), [(TEAM, "hf-team"), (OWN, "me/hf-team")])
def test_a_secret_is_set_and_removed(service: ServiceDriver, browser: TestClient, address: str, named: str):
    assert "There are no secrets yet." in browser.get(address).text
    set_it = browser.post(address, data={"name": "hf-team", "value": VALUE})
    assert (set_it.status_code, set_it.headers["Location"]) == (303, address)
    shown = browser.get(address)
    (row,) = parse(shown.text).one("tbody").all("tr")
    assert "hf-team" in row.words
    assert "never" in row.words
    assert VALUE not in shown.text
    service.submit(secrets={"HF_TOKEN": named})
    asked = browser.get(f"{address}/hf-team/remove")
    assert "Remove the secret hf-team?" in asked.text
    refused = browser.post(f"{address}/hf-team/remove")
    assert refused.status_code == 409
    assert "named by jobs that have not ended" in refused.text
    browser.post(address, data={"name": "other", "value": VALUE})
    assert browser.post(f"{address}/other/remove").status_code == 303
    assert "other" not in parse(browser.get(address).text).one("tbody").words


def test_what_the_api_refuses_is_said_beside_the_form(browser: TestClient):
    for name, value in (("Not a name", VALUE), ("hf", "short"), ("", ""), ("hf", "")):
        answer = browser.post(TEAM, data={"name": name, "value": value})
        assert answer.status_code == 422
        assert 'role="alert"' in answer.text
        assert not value or value not in answer.text


def test_another_sites_form_is_refused(browser: TestClient):
    elsewhere = {"Origin": "http://evil.example"}
    for address in (OWN, f"{OWN}/hf/remove"):
        assert (
            browser.post(address, data={"name": "hf", "value": VALUE}, headers=elsewhere).status_code == 403
        )


def test_pages_are_for_those_who_may(service: ServiceDriver, browser: TestClient):
    assert browser.get("/projects/nobodys/secrets").status_code == 404
    stranger = TestClient(service.app, base_url="http://127.0.0.1", follow_redirects=False)
    assert stranger.get(TEAM).headers["Location"].startswith("/login")


def test_a_job_page_shows_names_and_no_value(service: ServiceDriver, browser: TestClient):
    browser.post(TEAM, data={"name": "hf-team", "value": VALUE})
    job_id = service.person.post("/v1/jobs", json=example_spec(secrets={"HF_TOKEN": "hf-team"})).json()["id"]
    page = browser.get(f"/jobs/{job_id}/spec").text
    assert "hf-team" in page
    assert VALUE not in page
