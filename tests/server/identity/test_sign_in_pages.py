"""The dashboard's pages for signing in and for one's account, over the real API."""

import pytest

from powermean.contracts.names import SESSION_COOKIE
from tests.support.accounts import ADA, PASSWORD, person, visitor, with_password
from tests.support.device_codes import asked, claim
from tests.support.html_text import parse
from tests.support.service_driver import ADMIN_KEY

pytestmark = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)


def test_the_page_asks_only_for_what_somebody_has(service):
    alone = visitor(service).get("/login").text
    assert 'name="key"' in alone
    assert 'name="password"' not in alone
    assert "/login/oidc" not in alone
    with_password(service)
    assert 'name="password"' in visitor(service).get("/login").text


@pytest.mark.slow
def test_an_invitation_leads_to_a_password_and_that_to_the_front_page(service):
    person(service)
    code = service.person.post(f"/v1/people/{ADA}/login-codes").json()["code"]
    browser = visitor(service)
    answer = browser.post(f"/login/{code}")
    assert (answer.status_code, answer.headers["location"]) == (303, "/account#password")
    page = browser.get("/account").text
    assert "Set a password" in page
    assert 'name="current"' not in page
    refused = browser.post("/account/password", data={"password": PASSWORD, "again": PASSWORD + "x"})
    assert refused.status_code == 422
    assert "differ" in refused.text
    before = browser.cookies[SESSION_COOKIE]
    saved = browser.post("/account/password", data={"password": PASSWORD, "again": PASSWORD})
    assert saved.status_code == 303
    assert browser.cookies[SESSION_COOKIE] != before
    assert "Change your password" in browser.get("/account").text
    other = visitor(service)
    form = {"email": ADA, "password": PASSWORD, "next": "/cluster"}
    answer = other.post("/login", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/cluster")
    assert PASSWORD not in page


@pytest.mark.parametrize(
    "next_", ["//evil.example", "/\\evil.example", "https://evil.example", "javascript:x"]
)
def test_signing_in_leads_to_no_other_site(service, next_):
    with_password(service)
    for form in ({"email": ADA, "password": PASSWORD}, {"key": ADMIN_KEY}):
        answer = visitor(service).post("/login", data=form | {"next": next_})
        assert (answer.status_code, answer.headers["location"]) == (303, "/")


def test_a_wrong_password_is_not_repeated(service):
    with_password(service)
    answer = visitor(service).post("/login", data={"email": ADA, "password": "not the right one"})
    assert answer.status_code == 401
    assert "not the right one" not in answer.text
    assert "e-mail address or password is wrong" in answer.text


@pytest.mark.slow
def test_a_new_key_is_shown_once_and_revoked_with_a_button(service):
    browser = with_password(service)
    browser.follow_redirects = False
    made = browser.post(
        "/account/keys", data={"name": "<b>laptop", "role": "viewer", "project": "", "days": "7"}
    )
    assert made.status_code == 201
    secret = parse(made.text).one("code", class_="secret").text
    assert service.client(secret).get("/v1/me").status_code == 200
    assert "<b>laptop" not in made.text
    again = browser.get("/account").text
    assert secret not in again
    assert secret[:9] in again
    key_id = browser.get("/v1/keys").json()["items"][0]["id"]
    assert browser.post(f"/account/keys/{key_id}/revoke").status_code == 303
    assert service.client(secret).get("/v1/me").status_code == 401
    assert secret[:9] not in browser.get("/account").text
    assert browser.post("/account/keys", data={"name": "", "role": "member"}).status_code == 422


@pytest.mark.slow
def test_a_key_that_made_others_is_revoked_with_them_by_a_second_button(service):
    browser = with_password(service)
    secret = (
        parse(browser.post("/account/keys", data={"name": "laptop"}).text).one("code", class_="secret").text
    )
    assert "With those it made" not in browser.get("/account").text
    child = service.client(secret).post("/v1/keys", json={"name": "x"}).json()
    parent = child["made_by"]
    form = parse(browser.get("/account").text).one("form", action=f"/account/keys/{parent}/revoke")
    assert form.all("button")[-1].text == "With those it made"
    browser.post(f"/account/keys/{parent}/revoke")
    shown = browser.get("/account").text
    assert "made with laptop" in shown
    form = parse(shown).one("form", action=f"/account/keys/{parent}/revoke")
    assert [button.text for button in form.all("button")] == ["Revoke those it made"]
    browser.post(f"/account/keys/{parent}/revoke", data={"cascade": "yes"})
    assert parent not in browser.get("/account").text
    for one in (secret, child["key"]):
        assert service.client(one).get("/v1/me").status_code == 401


def test_a_wrong_password_keeps_the_address_that_was_typed(service):
    with_password(service)
    page = parse(visitor(service).post("/login", data={"email": ADA, "password": "wrong wrong wrong"}).text)
    assert page.one("input", name="email").attributes["value"] == ADA
    assert "autofocus" in page.one("input", name="password").attributes


@pytest.mark.slow
def test_another_browser_is_signed_out_with_a_button(service):
    first = with_password(service)
    second = visitor(service)
    second.post("/login", data={"email": ADA, "password": PASSWORD})
    page = parse(first.get("/account").text)
    (form,) = [one for one in page.all("form") if one.attributes["action"].endswith("/end")]
    first.post(form.attributes["action"])
    assert second.get("/account").headers["location"] == "/login?next=/account"


@pytest.mark.slow
def test_a_command_line_is_confirmed_on_a_page(service):
    browser = with_password(service)
    started = asked(service, "powermean on <i>gpu-1")
    assert 'name="code"' in browser.get("/device").text
    shown = browser.get("/device", params={"code": started["user_code"].lower()})
    assert "powermean on &lt;i&gt;gpu-1" in shown.text
    assert started["user_code"] in shown.text
    assert claim(service, started).json()["state"] == "pending"  # looking at it is no word
    said = browser.post("/device", data={"code": started["user_code"], "approve": "yes", "days": "7"})
    assert "is signed in as Ada" in said.text
    assert claim(service, started).json()["state"] == "approved"
    assert browser.get("/device", params={"code": "BBBB-BBBB"}).status_code == 404
    refused = asked(service)
    assert "Refused" in browser.post("/device", data={"code": refused["user_code"], "approve": "no"}).text
    assert claim(service, refused).json()["state"] == "denied"


@pytest.mark.parametrize(
    "path",
    ["/account/password", "/account/keys", "/account/keys/k/revoke", "/account/sessions/s/end", "/device"],
)
def test_another_site_changes_nothing(service, path):
    browser = with_password(service)
    started = asked(service)
    form = {"code": started["user_code"], "approve": "yes", "name": "x"}
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        assert browser.post(path, data=form, headers={"Origin": origin}).status_code == 403
    assert claim(service, started).json()["state"] == "pending"
    assert browser.get("/v1/keys").json()["items"] == []


def test_strangers_are_asked_to_sign_in_first(service):
    for path in ("/account", "/device"):
        assert visitor(service).get(path).headers["location"] == f"/login?next={path}"
