import asyncio

import pytest
from starlette.testclient import TestClient

from dashboard import logs
from dashboard.logs import tail
from powermean.contracts.api import AttemptNode, JobState, LogText
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


REQUESTS = """INFO:     127.0.0.1:5000 - "POST /v1/generate HTTP/1.1" 200 OK
httpx: HTTP Request: POST http://127.0.0.1:1/publish "HTTP/1.1 204 No Content"
"""


def test_requests_that_went_well_are_hidden_until_wanted(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job(state=JobState.FINISHED)
    refused = 'INFO:     127.0.0.1:5000 - "POST /v1/generate HTTP/1.1" 500 Internal Server Error\n'
    job.logs[1] = f"step 1: sampling\n{REQUESTS}{refused}"
    shown = parse(browser.get("/jobs/job-a/log").text).one("pre", class_="log").text
    assert shown == f"step 1: sampling\n{refused}"
    everything = parse(browser.get("/jobs/job-a/log?requests=1").text).one("pre", class_="log").text
    assert everything == job.logs[1]


def test_a_line_is_shown_when_it_is_whole(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    job.logs[1] = 'one\nINFO: "POST / HT'
    first = parse(browser.get("/jobs/job-a/log").text)
    assert first.one("pre").all("span")[0].text == "one\n"
    job.logs[1] += 'TP/1.1" 200 OK\ntwo\n'
    follow = first.one("span", **{"class": "next"}).attributes["hx-get"]
    assert parse(browser.get(follow, headers=FRAGMENT).text).all("span")[0].text == "two\n"


def test_the_whole_log_is_searched(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    filling = "nothing here\n" * (PART // 10)
    job.logs[1] = f"<b>NaN</b> at the start\n{filling}a nan at the end\n{filling}{REQUESTS}"
    page = parse(browser.get("/jobs/job-a/log?q=nan").text)
    found = [" ".join(span.text.split()) for span in page.one("pre").children if not isinstance(span, str)]
    assert found == ["1 <b>NaN</b> at the start", f"{2 + PART // 10} a nan at the end"]
    assert "2 lines with" in page.one("span", role="status").text
    assert "0 lines with" in browser.get("/jobs/job-a/log?q=generate").text
    assert "1 line with" in browser.get("/jobs/job-a/log?q=generate&requests=1").text


def test_a_log_is_downloaded_whole(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    job.logs[1] = "é" * (2 * PART) + REQUESTS
    answer = browser.get("/jobs/job-a/log/download?attempt=1")
    assert answer.headers["content-disposition"] == 'attachment; filename="job-a.1.log"'
    assert answer.text == job.logs[1]
    api.add_job("job-b", attempts=(), attempt=0)
    assert browser.get("/jobs/job-b/log/download").status_code == 404


def test_a_download_goes_to_the_end_and_a_search_says_where_it_stopped(
    browser: TestClient, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "MOST_SEARCHED", 2)
    job = api.add_job()
    job.logs[1] = "x" * (PART - 6) + "\nneedle" + "y" * 3 * PART + "\nneedle"
    assert browser.get("/jobs/job-a/log/download").text == job.logs[1]
    said = parse(browser.get("/jobs/job-a/log?q=needle").text).one("span", role="status").words
    assert said.startswith("1 line with “needle” in the first 1")
    assert "kB of attempt 1: download it to search the rest" in said
    monkeypatch.setattr(logs, "MOST_SEARCHED", 9)
    said = parse(browser.get("/jobs/job-a/log?q=needle").text).one("span", role="status").words
    assert said == "2 lines with “needle” in attempt 1"


def test_each_node_of_an_attempt_has_its_log(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    assert not parse(browser.get("/jobs/job-a/log").text).all("nav", **{"aria-label": "Nodes"})
    nodes = tuple(AttemptNode(node_rank=rank, node_id=f"n{rank}") for rank in range(2))
    (attempt,) = job.job.attempts
    job.update(attempts=(attempt.model_copy(update={"nodes": nodes}),))
    job.logs[1], job.other_logs[1, 1] = "of the first\n", "of the second\n"
    page = browser.get("/jobs/job-a/log")
    assert "of the first" in page.text
    links = [
        one.attributes["href"] for one in parse(page.text).one("nav", **{"aria-label": "Nodes"}).all("a")
    ]
    assert links == ["?attempt=1&node_rank=0", "?attempt=1&node_rank=1"]
    second = browser.get(f"/jobs/job-a/log{links[1]}")
    assert "of the second" in second.text
    assert "of the first" not in second.text
    follower = parse(second.text).one("span", **{"class": "next"}).attributes["hx-get"]
    assert follower.startswith("/jobs/job-a/log?attempt=1&node_rank=1&offset=")
    found = browser.get("/jobs/job-a/log?attempt=1&node_rank=1&q=second").text
    assert "<mark>second</mark>" in found
    assert 'download?attempt=1&amp;node_rank=1"' in found
    saved = browser.get("/jobs/job-a/log/download?attempt=1&node_rank=1")
    assert saved.text == "of the second\n"
    assert 'filename="job-a.1.node1.log"' in saved.headers["content-disposition"]
