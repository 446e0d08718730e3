"""The way to an OIDC provider and back on the dashboard's pages: who comes in, and who links an account."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import pytest
from sqlalchemy import select

from powermean.contracts.names import SESSION_COOKIE
from server.db.models import Person
from tests.support.accounts import ADA, PASSWORD, invited, person, sign_in, visitor, with_password
from tests.support.html_text import parse
from tests.support.oidc_provider import OidcProvider, oidc_provider
from tests.support.service_driver import ServiceDriver

pytestmark = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def idp() -> Iterator[OidcProvider]:
    with oidc_provider() as running:
        yield running


GRANTS = """[{"value": "ml", "project": "default", "role": "member"},
             {"value": "leads", "project": "default", "role": "maintainer"},
             {"value": "ops", "cluster_role": "auditor"}]"""


@pytest.fixture
def with_oidc(settings, idp) -> Iterator[ServiceDriver]:
    given = settings.model_dump() | {
        "oidc_issuer": idp.issuer,
        "oidc_client_id": "powermean",
        "oidc_client_secret": "secret",
        "oidc_grants": GRANTS,
        "oidc_name": "Example",
    }
    driver = ServiceDriver(type(settings)(**given))
    yield driver
    driver.close()


def come_in(service, idp, subject, next_=None):
    """A browser's way to the provider and back."""
    browser = visitor(service)
    to_provider = browser.get("/login/oidc", params={"next": next_} if next_ else {})
    assert to_provider.status_code == 303
    back = urlsplit(idp.agree(to_provider.headers["location"], subject))
    return browser, browser.get(f"{back.path}?{back.query}")


@pytest.mark.slow
def test_a_provider_lets_people_in_as_its_table_says(with_oidc, idp):
    idp.add("ada", name="Ada", email=ADA, email_verified=True, groups=["ml"])
    assert "Sign in with Example" in visitor(with_oidc).get("/login").text
    browser, answer = come_in(with_oidc, idp, "ada", "/cluster")
    assert answer.status_code == 200
    assert 'content="0; url=/cluster"' in answer.text
    cookies = answer.headers.get_list("set-cookie")
    assert any("powermean_session_oidc=" in one and "Max-Age=0" in one for one in cookies)
    assert any(one.startswith("powermean_session=") and "SameSite=strict" in one for one in cookies)
    me = browser.get("/v1/me").json()
    assert (me["name"], me["email"], me["projects"]) == ("Ada", ADA, {"default": "member"})
    assert me["default_project"] == "default"
    idp.add("ada", name="Ada L.", groups=["leads", "ops"])
    again, _ = come_in(with_oidc, idp, "ada")
    assert again.get("/v1/me").json()["id"] == me["id"]
    assert again.get("/v1/me").json()["projects"] == {"default": "maintainer"}
    assert browser.get("/v1/me").json()["cluster_role"] == "auditor"  # sessions have no rights of their own
    session = again.get("/v1/me/sessions").json()["items"][0]
    assert session["method"] == "oidc"


@pytest.mark.slow
def test_who_lost_their_groups_is_out_and_their_sessions_with_them(with_oidc, idp):
    idp.add("bob", name="Bob", groups=["ml"])
    browser, _ = come_in(with_oidc, idp, "bob")
    key = browser.post("/v1/keys", json={"name": "k"}).json()["key"]
    assert with_oidc.client(key).get("/v1/jobs").status_code == 200
    idp.add("bob", name="Bob", groups=[])
    _, refused = come_in(with_oidc, idp, "bob")
    assert refused.status_code == 403
    assert "no project yet" in refused.text
    assert browser.get("/v1/me").status_code == 401
    assert with_oidc.client(key).get("/v1/me").json()["allowed"] == {}


@pytest.mark.slow
def test_a_deactivated_account_is_not_revived_by_the_provider(with_oidc, idp):
    idp.add("eve", name="Eve", groups=["ml"])
    browser, _ = come_in(with_oidc, idp, "eve")
    me = browser.get("/v1/me").json()["id"]
    with_oidc.person.patch(f"/v1/people/{me}", json={"active": False})
    _, refused = come_in(with_oidc, idp, "eve")
    assert refused.status_code == 403
    assert "not active" in refused.text


@pytest.mark.slow
def test_an_address_alone_is_nobodys_account(with_oidc, idp):
    """The provider's user with an administrator's address gets an account of their own, without it."""
    mine = person(with_oidc, "root@example.org", cluster_role="admin")
    idp.add("mallory", name="Root", email="Root@Example.org", email_verified=True, groups=["ml"])
    browser, _ = come_in(with_oidc, idp, "mallory")
    me = browser.get("/v1/me").json()
    assert me["id"] != mine["id"]
    assert (me["email"], me["cluster_role"]) == (None, None)


@pytest.mark.slow
def test_what_the_provider_sends_is_good_in_the_browser_that_asked_and_once(with_oidc, idp):
    idp.add("ada", name="Ada", groups=["ml"])
    attacker = visitor(with_oidc)
    back = urlsplit(idp.agree(attacker.get("/login/oidc").headers["location"], "ada"))
    address = f"{back.path}?{back.query}"
    for victim in (visitor(with_oidc), visitor(with_oidc)):
        assert victim.get(address).status_code == 401
        assert SESSION_COOKIE not in victim.cookies
        victim.get("/login/oidc")
        assert victim.get(address).status_code == 401
    secret = attacker.cookies["powermean_session_oidc"]
    assert attacker.get(address).status_code == 200
    attacker.cookies.set("powermean_session_oidc", secret, path="/login/oidc")
    assert attacker.get(address).status_code == 401


@pytest.mark.slow
def test_the_way_back_leads_to_no_other_site(with_oidc, idp):
    idp.add("ada", name="Ada", groups=["ml"])
    _, answer = come_in(with_oidc, idp, "ada", "//evil.example/")
    assert 'content="0; url=/"' in answer.text
    browser = visitor(with_oidc)
    to_provider = browser.get("/login/oidc")
    secret = browser.cookies["powermean_session_oidc"].partition(".")[0]
    browser.cookies.set("powermean_session_oidc", f"{secret}.%2F%2Fevil.example", path="/login/oidc")
    back = urlsplit(idp.agree(to_provider.headers["location"], "ada"))
    browser.cookies.delete("powermean_session_oidc", domain="127.0.0.1")
    answer = browser.get(f"{back.path}?{back.query}")
    assert "evil.example" not in answer.text


@pytest.mark.slow
def test_a_refusal_at_the_provider_is_said(with_oidc):
    browser = visitor(with_oidc)
    state = parse_qs(urlsplit(browser.get("/login/oidc").headers["location"]).query)["state"][0]
    answer = browser.get("/login/oidc/callback", params={"error": "access_denied", "state": state})
    assert answer.status_code == 401
    assert "has not signed you in" in answer.text


@pytest.mark.slow
def test_whom_a_provider_vouches_for_has_no_password_and_keys_only_while_it_does(with_oidc, idp):
    idp.add("ada", name="Ada", email=ADA, email_verified=True, groups=["ml"])
    browser, _ = come_in(with_oidc, idp, "ada")
    assert browser.put("/v1/me/password", json={"password": PASSWORD}).status_code == 409
    assert with_oidc.person.post(f"/v1/people/{ADA}/login-codes").status_code == 409
    key = browser.post("/v1/keys", json={"name": "k"}).json()["key"]
    assert with_oidc.client(key).get("/v1/me").status_code == 200
    with with_oidc.database.write() as session:
        past = datetime.now(UTC) - timedelta(seconds=1)
        session.scalars(select(Person).where(Person.oidc_subject == "ada")).one().oidc_until = past
    assert with_oidc.client(key).get("/v1/me").status_code == 401
    come_in(with_oidc, idp, "ada")
    assert with_oidc.client(key).get("/v1/me").status_code == 200


def link(browser, idp, subject):
    """An invited browser's way to the provider, back, and the yes."""
    to_provider = browser.get("/login/oidc", params={"link": "yes"})
    back = urlsplit(idp.agree(to_provider.headers["location"], subject))
    question = browser.get(f"{back.path}?{back.query}")
    assert question.status_code == 200
    form = parse(question.text).one("form", action="/login/oidc/link")
    names = [one.attributes for one in form.all("input")]
    return browser.post("/login/oidc/link", data={one["name"]: one["value"] for one in names})


@pytest.mark.slow
def test_an_account_that_is_here_is_linked_by_an_invitation(with_oidc, idp):
    with_password(with_oidc)
    idp.add("ada-2", name="Ada", groups=["leads"])
    browser = invited(with_oidc)
    browser.follow_redirects = False
    me = browser.get("/v1/me").json()["id"]
    assert "Sign in with Example from now on" in browser.get("/account").text
    done = link(browser, idp, "ada-2")
    assert (done.status_code, done.headers["location"]) == (303, "/account")
    mine = browser.get("/v1/me").json()
    assert (mine["id"], mine["email"], mine["projects"]) == (me, ADA, {"default": "maintainer"})
    assert browser.get("/v1/me/sessions").json()["items"][0]["method"] == "oidc"
    assert come_in(with_oidc, idp, "ada-2")[0].get("/v1/me").json()["id"] == me
    assert sign_in(with_oidc)[1].status_code == 401  # the password is gone
    assert with_oidc.person.post(f"/v1/people/{ADA}/login-codes").status_code == 409


@pytest.mark.slow
def test_only_an_invitation_links_and_only_what_opens_no_other_account(with_oidc, idp):
    browser = with_password(with_oidc)
    browser.follow_redirects = False
    idp.add("ada-3", name="Ada", groups=["ml"])
    assert link(browser, idp, "ada-3").status_code == 403  # a stolen session gains nothing
    key = browser.post("/v1/keys", json={"name": "k"}).json()["key"]
    proof = {"code": "c", "state": "s", "secret": "x"}
    assert with_oidc.client(key).put("/v1/me/provider", json=proof).status_code == 403
    other = come_in(with_oidc, idp, "ada-3")[0].get("/v1/me").json()["id"]
    browser = invited(with_oidc)
    browser.follow_redirects = False
    refused = link(browser, idp, "ada-3")
    assert refused.status_code == 409
    assert other in refused.text
    with_oidc.person.patch(f"/v1/people/{other}", json={"active": False})
    assert link(browser, idp, "ada-3").status_code == 303
    assert browser.get("/v1/me").json()["email"] == ADA


@pytest.mark.slow
def test_another_browsers_answer_links_nothing(with_oidc, idp):
    """Somebody who makes an invited person's browser take their own provider account."""
    person(with_oidc)
    browser = invited(with_oidc)
    browser.follow_redirects = False
    idp.add("mallory", name="Mallory", groups=["ml"])
    attacker = visitor(with_oidc)
    back = urlsplit(idp.agree(attacker.get("/login/oidc?link=yes").headers["location"], "mallory"))
    form = {name: values[0] for name, values in parse_qs(back.query).items()}
    browser.get("/login/oidc?link=yes")
    assert browser.post("/login/oidc/link", data=form).headers["location"].startswith("/login")
    assert (
        browser.post("/login/oidc/link", data=form, headers={"Origin": "https://evil.org"}).status_code == 403
    )
    with with_oidc.database.read() as session:
        assert session.scalars(select(Person.oidc_subject).where(Person.email == ADA)).one() is None


@pytest.mark.slow
def test_the_last_administrator_is_not_linked_away(with_oidc, idp):
    with_oidc.person.patch("/v1/people/person-administrator", json={"email": "root@example.org"})
    browser = invited(with_oidc, "root@example.org")
    browser.follow_redirects = False
    idp.add("root", name="Root", groups=["ml"])  # whom the table makes no administrator
    assert link(browser, idp, "root").status_code == 409
    assert browser.get("/v1/me").json()["cluster_role"] == "admin"


def test_without_a_provider_there_is_no_way_there(service):
    assert visitor(service).get("/login/oidc").status_code == 404
    assert service.anyone.post("/v1/sessions/oidc").status_code == 404
    proof = {"oidc": {"code": "c", "state": "s", "secret": "x"}}
    assert service.anyone.post("/v1/sessions", json=proof).status_code == 404
