"""The dashboard over a stand-in API, and a browser-like client that is signed in."""

from collections.abc import Iterator

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from dashboard.app import create_dashboard
from tests.support.fake_api import COOKIE, FakeApi
from tests.support.fake_api_routes import create_api

ORIGIN = "http://testserver"


@pytest.fixture(scope="session")
def site() -> tuple[FakeApi, FastAPI]:
    """The API and the application over it, built once; `api` empties it for each test."""
    api = FakeApi()
    app = create_api(api)
    app.mount("/", create_dashboard(app))
    return api, app


@pytest.fixture
def api(site: tuple[FakeApi, FastAPI]) -> FakeApi:
    api, _ = site
    vars(api).update(vars(FakeApi()))
    return api


@pytest.fixture
def stranger(site: tuple[FakeApi, FastAPI], api: FakeApi) -> Iterator[TestClient]:
    """A browser that has not signed in. It sends its own origin with every request."""
    _, app = site
    with TestClient(app, base_url=ORIGIN, headers={"Origin": ORIGIN}, follow_redirects=False) as browser:
        yield browser


@pytest.fixture
def browser(stranger: TestClient) -> TestClient:
    """A browser that is signed in."""
    stranger.cookies.set(COOKIE, "open", domain="testserver.local")
    return stranger
