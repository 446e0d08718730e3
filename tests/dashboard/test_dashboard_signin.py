import pytest
from starlette.testclient import TestClient

from dashboard.signin import safe_return
from tests.support.fake_api import CODE, COOKIE, KEY, FakeApi
from tests.support.html_text import parse

PAGES = ["/", "/cluster", "/jobs/job-a", "/jobs/job-a/steps/3", "/jobs/job-a/log"]


@pytest.mark.parametrize("path", PAGES)
def test_strangers_are_sent_to_sign_in_and_back(stranger: TestClient, path: str) -> None:
    answer = stranger.get(path)
    assert answer.status_code == 303
    assert answer.headers["location"] == ("/login" if path == "/" else f"/login?next={path}")


def test_a_fragment_tells_htmx_where_to_sign_in(stranger: TestClient) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://testserver/jobs/job-a?x=1"}
    answer = stranger.get("/jobs/job-a/part/header", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["HX-Redirect"] == "/login?next=/jobs/job-a"


def test_a_key_becomes_a_cookie(stranger: TestClient) -> None:
    answer = stranger.post("/login", data={"key": f" {KEY}\n", "next": "/cluster"})
    assert answer.status_code == 303
    assert answer.headers["location"] == "/cluster"
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=open")
    assert "HttpOnly" in cookie
    assert KEY not in cookie


def test_a_wrong_key_is_explained_and_not_repeated(stranger: TestClient) -> None:
    answer = stranger.post("/login", data={"key": "pm_wrong"})
    assert answer.status_code == 401
    assert "this key is not known" in answer.text
    assert "pm_wrong" not in answer.text
    assert stranger.post("/login", data={"key": " "}).status_code == 422


def test_a_link_signs_in_by_post_alone(stranger: TestClient) -> None:
    page = stranger.get(f"/login/{CODE}")
    form = parse(page.text).one("form", action=f"/login/{CODE}")
    assert form.attributes["method"] == "post"
    assert "set-cookie" not in page.headers
    answer = stranger.post(f"/login/{CODE}")
    assert answer.status_code == 303
    assert answer.headers["set-cookie"].startswith(COOKIE)
    spent = stranger.post("/login/other")
    assert spent.status_code == 401


def test_another_site_cannot_sign_a_browser_in(stranger: TestClient) -> None:
    answer = stranger.post("/login", data={"key": KEY}, headers={"Origin": "https://evil.example"})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_signing_out_ends_the_session(browser: TestClient) -> None:
    answer = browser.post("/logout")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/login"
    assert "Max-Age=0" in answer.headers["set-cookie"]


def test_signing_out_twice_is_fine(stranger: TestClient) -> None:
    assert stranger.post("/logout").status_code == 303


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/jobs/a", "/jobs/a"),
        ("//evil.example", "/"),
        ("/\\evil.example", "/"),
        ("https://evil.example", "/"),
        ("/a\nb", "/"),
        ("", "/"),
        (None, "/"),
    ],
)
def test_only_paths_of_this_site_are_returned_to(given: object, kept: str) -> None:
    assert safe_return(given) == kept


def test_every_answer_carries_the_policy(stranger: TestClient, api: FakeApi) -> None:
    for path in ("/login", "/", "/static/css/base.css", "/nowhere"):
        headers = stranger.get(path).headers
        assert headers["content-security-policy"].startswith("default-src 'self';")
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"
    assert stranger.get("/login").headers["cache-control"] == "no-store"


def test_cookies_of_other_programs_on_the_host_are_nobody(stranger: TestClient, browser: TestClient) -> None:
    others = {"Cookie": "powermean_session_9999=x; theme=b\u00e9".encode("latin-1")}
    page = stranger.get("/login", headers=others)
    assert "Sign out" not in page.text
    assert stranger.get("/", headers=others).headers["location"] == "/login"
    cookie = f"powermean_session={browser.cookies['powermean_session']}; theme=b\u00e9".encode("latin-1")
    assert stranger.get("/", headers={"Cookie": cookie}).status_code == 200
