"""Behind a proxy that has TLS or a path of its own: links, cookies and origins are those that people see."""

import re
from collections.abc import Iterator

import pytest
from httpx import Response
from starlette.testclient import TestClient
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from tests.support.service_driver import ADMIN_KEY, ServiceDriver, error_of

PUBLIC = "https://pm.example.org:8443/powermean"
ORIGIN = {"Origin": "https://pm.example.org:8443"}
LINK = re.compile(r'\b(?:href|src|action|hx-get|data-echarts|data-stepper)="([^"]*)"')


@pytest.fixture
def kind() -> str:
    """What is seen from outside is the same on every database."""
    return "sqlite"


@pytest.fixture
def behind(settings) -> Iterator[ServiceDriver]:
    """A service whose public address has TLS, a port and a path."""
    driver = ServiceDriver(settings.model_copy(update={"public_url": PUBLIC}))
    yield driver
    driver.close()


def signed_in(answer: Response) -> dict[str, str]:
    return {"Cookie": answer.headers["set-cookie"].partition(";")[0]}


# nginx replaces the Host header, others keep it
@pytest.mark.slow
@pytest.mark.parametrize("host", ["127.0.0.1:8700", "pm.example.org:8443"])
def test_a_session_is_opened_used_and_closed(behind: ServiceDriver, host: str):
    browser = TestClient(behind.app, base_url=f"http://{host}", follow_redirects=False)
    answer = browser.post("/login", data={"key": ADMIN_KEY, "next": "/cluster"}, headers=ORIGIN)
    assert answer.status_code == 303
    assert answer.headers["location"] == "/powermean/cluster"
    attributes = answer.headers["set-cookie"].lower().split("; ")[1:]
    assert {"secure", "httponly", "samesite=strict", "path=/powermean"} <= set(attributes)
    session = signed_in(answer)
    assert browser.get("/", headers=session).status_code == 200
    assert browser.post("/logout", headers=session).status_code == 403
    assert browser.post("/logout", headers=session | {"Origin": "https://evil.org"}).status_code == 403
    out = browser.post("/logout", headers=session | ORIGIN)
    assert out.headers["location"] == "/powermean/login"
    assert "path=/powermean" in out.headers["set-cookie"].lower()
    assert browser.get("/", headers=session).headers["location"] == "/powermean/login"


def test_links_lead_to_where_people_reach_it(behind: ServiceDriver):
    assert behind.person.post("/v1/login-codes").json()["url"].startswith(f"{PUBLIC}/login/")
    browser = TestClient(behind.app, base_url="http://127.0.0.1:8700")
    session = signed_in(browser.post("/v1/sessions", json={"key": ADMIN_KEY}, headers=ORIGIN))
    page = browser.post("/people", data={"name": "Ada"}, headers=session | ORIGIN)
    assert f">{PUBLIC}/login/" in page.text


@pytest.mark.slow
def test_every_address_on_a_page_is_below_the_path(behind: ServiceDriver):
    attempt = behind.running()
    job_id = attempt.claim.job_id
    browser = TestClient(behind.app, base_url="http://pm.example.org:8443")
    session = signed_in(browser.post("/v1/sessions", json={"key": ADMIN_KEY}, headers=ORIGIN))
    found = 0
    for path in ("/", "/login", "/new", "/cluster", f"/jobs/{job_id}", f"/jobs/{job_id}/log", "/nowhere"):
        page = browser.get(path, headers=session)
        for address in LINK.findall(page.text):
            found += 1
            assert address.startswith(("/powermean/", "#", "?")), (path, address)
    assert found > 50


def test_a_fragment_leads_to_the_sign_in_page_and_back(behind: ServiceDriver):
    headers = {"HX-Request": "true", "HX-Current-URL": f"{PUBLIC}/cluster"}
    answer = behind.anyone.get("/cluster", headers=headers)
    assert answer.headers["hx-redirect"] == "/powermean/login?next=/cluster"


def test_without_a_public_address_nothing_is_secure_that_is_not(settings):
    service = ServiceDriver(settings)
    try:
        answer = service.anyone.post("/v1/sessions", json={"key": ADMIN_KEY})
        assert "secure" not in answer.headers["set-cookie"].lower()
        forwarded = {"X-Forwarded-Proto": "https"}
        plain = service.anyone.post("/v1/sessions", json={"key": ADMIN_KEY}, headers=forwarded)
        assert "secure" not in plain.headers["set-cookie"].lower()
        proxied = ProxyHeadersMiddleware(service.app, trusted_hosts=["testclient"])
        named = TestClient(proxied, base_url="http://127.0.0.1")
        answer = named.post("/v1/sessions", json={"key": ADMIN_KEY}, headers=forwarded)
        assert "secure" in answer.headers["set-cookie"].lower()
    finally:
        service.close()


def test_two_services_on_one_host_do_not_sign_each_other_out(service: ServiceDriver):
    jar = {}
    for port in (8911, 8912):
        browser = TestClient(service.app, base_url=f"http://127.0.0.1:{port}")
        answer = browser.post("/v1/sessions", json={"key": ADMIN_KEY})
        name, _, value = answer.headers["set-cookie"].partition(";")[0].partition("=")
        jar[name] = value
    both = {"Cookie": "; ".join(f"{name}={value}" for name, value in jar.items())}
    for port in (8911, 8912):
        browser = TestClient(service.app, base_url=f"http://127.0.0.1:{port}")
        assert browser.get("/v1/jobs", headers=both).status_code == 200
    other = TestClient(service.app, base_url="http://127.0.0.1:8913").get("/v1/jobs", headers=both)
    assert error_of(other)["code"] == "unauthenticated"
