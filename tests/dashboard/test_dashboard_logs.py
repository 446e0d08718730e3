import asyncio

import pytest
from starlette.testclient import TestClient

from dashboard.logs import tail
from powermean.contracts.api import JobState, LogText
from tests.support.fake_api import PART, FakeApi
from tests.support.html_text import parse

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
    job.logs[1] = "x" * (PART + 5)
    first = parse(browser.get("/jobs/job-a/log?offset=0").text).one("span", **{"class": "next"})
    last = parse(browser.get(first.attributes["hx-get"], headers=FRAGMENT).text)
    assert last.all("span")[0].text == "xxxxx"
    assert not last.all("span", **{"class": "next"})


@pytest.mark.parametrize("length", [0, 7, PART - 1, PART, PART + 1, 2 * PART, 5 * PART + 17, 40 * PART])
def test_the_tail_of_a_log_of_any_length(length: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(length))
    reads = []

    async def read(offset: int) -> LogText:
        reads.append(offset)
        part = text[offset : offset + PART]
        return LogText(attempt=1, offset=offset, next_offset=offset + len(part), text=part)

    found = asyncio.run(tail(read))
    assert found.next_offset == length
    assert found.text == text[found.offset :]
    assert len(reads) < 16


def test_attempts_can_be_chosen(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    job.logs[1] = "first try\n"
    job.rewind(3)
    job.logs[2] = "second try\n"
    assert "second try" in browser.get("/jobs/job-a/log").text
    assert "first try" in browser.get("/jobs/job-a/log?attempt=1").text
    assert browser.get("/jobs/job-a/log?attempt=0").status_code == 400


def test_an_empty_log_says_so(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    assert "Nothing written yet." in browser.get("/jobs/job-a/log").text
    job.set_state(JobState.FAILED)
    assert "Nothing was written." in browser.get("/jobs/job-a/log").text


def test_no_log_yet(browser: TestClient, api: FakeApi) -> None:
    api.add_job(attempts=(), attempt=0)
    assert "No log yet." in browser.get("/jobs/job-a/log").text
