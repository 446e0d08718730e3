from fake_api import FakeApi
from html_text import parse
from starlette.testclient import TestClient

from powermean.contracts.api import JobState

FRAGMENT = {"HX-Request": "true"}


def test_a_log_is_escaped_and_followed(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    job.logs[1] = "step 1\n<script>alert(1)</script>\n"
    page = browser.get("/jobs/job-a/log")
    assert "<script>alert" not in page.text
    follower = parse(page.text).one("span", **{"class": "next"})
    address = follower.attributes["hx-get"]
    assert address == f"/jobs/job-a/log?attempt=1&offset={len(job.logs[1])}"
    job.logs[1] += "step 2\n"
    piece = parse(browser.get(address, headers=FRAGMENT).text)
    assert piece.all("span")[0].text == "step 2\n"
    assert piece.one("span", **{"class": "next"}).attributes["hx-get"].endswith(f"offset={len(job.logs[1])}")


def test_a_finished_log_is_read_to_its_end_and_then_rests(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job(state=JobState.FINISHED)
    job.logs[1] = "done\n"
    first = parse(browser.get("/jobs/job-a/log").text).one("span", **{"class": "next"})
    last = parse(browser.get(first.attributes["hx-get"], headers=FRAGMENT).text)
    assert not last.all("span", **{"class": "next"})


def test_attempts_can_be_chosen(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    job.logs[1] = "first try\n"
    job.rewind(3)
    job.logs[2] = "second try\n"
    assert "second try" in browser.get("/jobs/job-a/log").text
    assert "first try" in browser.get("/jobs/job-a/log?attempt=1").text
    assert browser.get("/jobs/job-a/log?attempt=0").status_code == 400


def test_no_log_yet(browser: TestClient, api: FakeApi) -> None:
    api.add_job(attempts=(), attempt=0)
    assert "No log yet." in browser.get("/jobs/job-a/log").text
