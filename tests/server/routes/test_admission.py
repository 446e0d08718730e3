"""At the door: whoever comes too often waits, and others do not notice."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from tests.support.service_driver import ADMIN_KEY, ServiceDriver, error_of, example_spec


@pytest.fixture
def kind() -> str:
    """On SQLite the rates are counted in the process; tests/server/test_limits.py has Redis."""
    return "sqlite"


@pytest.fixture
def limited(settings) -> Iterator[ServiceDriver]:
    """A service where few requests are many."""
    few = {"rate_person": "20/minute", "rate_node": "30/minute", "rate_stranger": "10/minute"}
    driver = ServiceDriver(settings.model_copy(update=few))
    yield driver
    driver.close()


def let_in(client: TestClient, path: str = "/v1/me", most: int = 100) -> int:
    """How many requests in a row are not one too many."""
    for number in range(most):
        answer = client.get(path)
        if answer.status_code == 429:
            error = error_of(answer)
            assert error["code"] == "too_many_requests"
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert error["remedy"] == f"Try again in {answer.headers['retry-after']} s."
            return number
    return most


def test_a_person_has_one_rate_for_all_keys_and_browsers(limited: ServiceDriver) -> None:
    ada, other = limited.someone(), limited.someone(name="Bob")
    second = limited.client(ada.post("/v1/keys", json={"name": "second"}).json()["key"])
    for client in (ada, second) * 9:
        assert client.get("/v1/me").status_code == 200
    assert let_in(second) == 1
    assert let_in(ada) == 0
    assert let_in(other) == 20


def test_strangers_share_their_addresss_rate(limited: ServiceDriver) -> None:
    for number, stranger in enumerate((limited.anyone, limited.client("pm_wrong"), limited.client("x")) * 3):
        assert stranger.get(f"/v1/jobs/{number}").status_code == 401
    assert limited.anyone.post("/v1/sessions", json={"key": "pm_wrong"}).status_code in (401, 429)
    assert let_in(limited.client("pm_wrong")) == 0
    assert limited.anyone.post("/v1/sessions", json={"key": ADMIN_KEY}).status_code == 429
    assert limited.anyone.get("/healthz").status_code == 200
    assert limited.person.get("/v1/me").status_code == 200  # who has a key does not notice


def test_refusals_of_known_people_count_for_the_address(limited: ServiceDriver) -> None:
    viewer = limited.someone("viewer")
    answers = [viewer.post("/v1/jobs", json=example_spec()).status_code for _ in range(12)]
    assert answers == [403] * 10 + [429] * 2


def test_an_attempt_has_a_rate_of_its_own(limited: ServiceDriver) -> None:
    attempt = limited.running()
    statuses = [attempt.beat().status_code for _ in range(31)]
    assert statuses == [200] * 30 + [429]
    limited.report()  # the node's is another


def test_a_page_says_when_to_try_again(limited: ServiceDriver) -> None:
    browser = TestClient(limited.app, base_url="http://127.0.0.1")
    browser.post("/v1/sessions", json={"key": ADMIN_KEY})
    pages = [browser.get("/cluster") for _ in range(21)]
    assert pages[0].status_code == 200
    assert pages[-1].status_code == 429
    assert "Try again in" in pages[-1].text
