"""Signing in, the account and command lines in a real browser, the provider's way there and back included."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest

from tests.browser.test_accessibility import LOOKS, findings
from tests.support.browser_tabs import Tab, Tabs
from tests.support.oidc_provider import OidcProvider, oidc_provider
from tests.support.real_service import ADMIN_KEY, Service

if TYPE_CHECKING:
    from playwright.sync_api import Browser

BOB = "bob@example.org"
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def idp() -> Iterator[OidcProvider]:
    with oidc_provider() as running:
        running.add("ada", name="Ada Lovelace", groups=["ml"])
        yield running


@pytest.fixture
def service(
    tmp_path: Path, chromium: "Browser", idp: OidcProvider, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Service]:
    """A service with a provider, and an account with an e-mail address."""
    monkeypatch.setenv("POWERMEAN_OIDC_ISSUER", idp.issuer)
    monkeypatch.setenv("POWERMEAN_OIDC_CLIENT_ID", "powermean")
    monkeypatch.setenv("POWERMEAN_OIDC_CLIENT_SECRET", "secret")
    monkeypatch.setenv("POWERMEAN_OIDC_NAME", "Example")
    monkeypatch.setenv("POWERMEAN_OIDC_GRANTS", '[{"value": "ml", "project": "default", "role": "member"}]')
    running = Service(tmp_path)
    administrator(running).post(
        "/v1/people", json={"name": "Bob", "email": BOB, "project": "default"}
    ).raise_for_status()
    yield running
    running.close()


def administrator(service: Service) -> httpx.Client:
    return httpx.Client(base_url=service.url, headers={"Authorization": f"Bearer {ADMIN_KEY}"})


def invited(service: Service, tab: Tab) -> None:
    """Follow an invitation, and set a password."""
    code = administrator(service).post(f"/v1/people/{BOB}/login-codes").json()["code"]
    tab.page.goto(f"/login/{code}")
    tab.page.wait_for_url("**/account#password")
    tab.page.get_by_label("New password").fill(PASSWORD)
    tab.page.get_by_label("The same again").fill(PASSWORD)
    tab.page.get_by_role("button", name="Save").click()
    tab.shows("h2", "Change your password")


def test_from_an_invitation_to_a_command_line(service: Service, tabs: Tabs) -> None:
    invited(service, tabs.stranger())
    tab = tabs.stranger()
    tab.page.goto("/account")
    tab.page.get_by_label("E-mail address").fill(BOB)
    tab.page.get_by_label("Password").fill(PASSWORD)
    tab.page.get_by_role("button", name="Sign in", exact=True).first.click()
    tab.page.wait_for_url("**/account")
    tab.shows("h1", "Bob")
    tab.page.get_by_label("New key for").fill("laptop")
    tab.page.get_by_role("button", name="Create").click()
    key = tab.page.locator(".secret").inner_text()
    assert httpx.get(f"{service.url}/v1/me", headers={"Authorization": f"Bearer {key}"}).status_code == 200
    tab.page.get_by_role("button", name="Revoke laptop").click()
    tab.shows("#keys", "You have none.")
    tab.page.get_by_role("button", name="Sign out Chrome on Linux").click()
    tab.page.wait_for_url("**/account#sessions")
    started = httpx.post(f"{service.url}/v1/device-codes", json={"client": "powermean on gpu-1"}).json()
    tab.page.goto("/device")
    tab.page.get_by_label("Code").fill(started["user_code"].lower())
    tab.page.get_by_role("button", name="Go on").click()
    tab.shows("main", "powermean on gpu-1 wants to act as you, Bob")
    tab.page.get_by_role("button", name="Allow").click()
    tab.shows("main", "is signed in as Bob")
    claim = {"device_code": started["device_code"]}
    assert (
        httpx.post(f"{service.url}/v1/device-codes/claim", json=claim).json()["signed_in"]["person"] == "Bob"
    )
    assert not tab.complaints


def test_to_the_provider_and_back_to_the_page_that_was_asked_for(service: Service, tabs: Tabs) -> None:
    """The session's cookie is SameSite=Strict: it must be there although the way began at another site."""
    tab = tabs.stranger()
    tab.page.goto("/cluster")
    tab.page.get_by_role("link", name="Sign in with Example").click()
    tab.page.locator("input[name=sub]").fill("ada")
    tab.page.locator("button").first.click()
    tab.page.wait_for_url(f"{service.url}/cluster")
    tab.page.get_by_role("link", name="Account").click()
    tab.shows("h1", "Ada Lovelace")


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark phone"])
def test_axe_finds_nothing_and_nothing_is_too_wide(
    service: Service, tabs: Tabs, look: dict[str, object]
) -> None:
    tab = tabs.stranger(bypass_csp=True, **look)
    found = findings(tab, "/login")
    assert tab.too_wide() == {}
    invited(service, tab)
    user_code = httpx.post(f"{service.url}/v1/device-codes", json={"client": "x"}).json()["user_code"]
    for path in ("/account", "/device", f"/device?code={user_code}", "/device?code=BBBB-BBBB"):
        found += findings(tab, path)
        assert tab.too_wide() == {}, path
    tab.page.goto(f"/device?code={user_code}")
    tab.page.get_by_role("button", name="Allow").click()
    tab.page.wait_for_url("**/device")
    assert found == []
