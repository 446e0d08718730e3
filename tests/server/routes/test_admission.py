"""At the door: whoever comes too often waits, and others do not notice."""

import re
from collections.abc import Iterator

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient
from starlette.types import ASGIApp
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from server.app import MAX_BODY
from server.routes.api import api_routes
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_an_attempt_has_a_rate_of_its_own(limited: ServiceDriver) -> None:
    attempt = limited.running()
    statuses = [attempt.beat().status_code for _ in range(31)]
    assert statuses == [200] * 30 + [429]
    limited.report()  # the node's is another


@pytest.mark.slow
def test_an_address_is_the_one_that_a_named_proxy_forwards(limited: ServiceDriver) -> None:
    def asked(app: ASGIApp, address: str) -> list[int]:
        headers = {"Authorization": "Bearer pm_wrong", "X-Forwarded-For": address}
        client = TestClient(app, base_url="http://127.0.0.1", headers=headers)
        return [client.get("/v1/me").status_code for _ in range(11)]

    once_too_often = [401] * 10 + [429]
    named = ProxyHeadersMiddleware(limited.app, trusted_hosts=["testclient"])
    assert asked(named, "192.0.2.1") == once_too_often
    assert asked(named, "192.0.2.2") == once_too_often
    assert asked(named, "2001:db8::1") == once_too_often
    assert asked(named, "2001:db8::2") == [429] * 11  # the same client's network
    unnamed = ProxyHeadersMiddleware(limited.app, trusted_hosts=["192.0.2.9"])
    assert asked(unnamed, "192.0.2.3") == once_too_often
    assert asked(unnamed, "192.0.2.4") == [429] * 11  # a header that anybody can send changes nothing
    answer = limited.person.get("/v1/audit", params={"outcome": "refused", "limit": 500})
    addresses = {entry["address"] for entry in answer.json()["items"]}
    assert addresses == {"192.0.2.1", "192.0.2.2", "2001:db8::1", "testclient"}


@pytest.mark.slow
def test_every_route_takes_bodies_of_a_size_that_was_meant(limited: ServiceDriver) -> None:
    """Whoever adds a route decides about its bodies here."""
    larger = {"/v1/datasets", "/v1/sessions"}
    for route in api_routes():
        assert isinstance(route, APIRoute)
        path = re.sub(r"\{[^}]*\}", "x", route.path)
        if path in larger or path.startswith(("/v1/attempts/", "/v1/nodes/")):
            continue
        for method in route.methods:
            answer = limited.anyone.request(
                method, path, content=b"x", headers={"Content-Length": str(MAX_BODY + 1)}
            )
            assert answer.status_code == 413, (method, path)


@pytest.mark.slow
def test_a_page_says_when_to_try_again(limited: ServiceDriver) -> None:
    browser = TestClient(limited.app, base_url="http://127.0.0.1")
    browser.post("/v1/sessions", json={"key": ADMIN_KEY})
    pages = [browser.get("/cluster") for _ in range(21)]
    assert pages[0].status_code == 200
    assert pages[-1].status_code == 429
    assert "Try again in" in pages[-1].text
