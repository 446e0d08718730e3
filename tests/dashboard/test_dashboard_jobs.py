import pytest
from starlette.testclient import TestClient

from powermean.async_client import AsyncClient
from powermean.contracts.api import JobState
from tests.support.fake_api import SPEC, FakeApi
from tests.support.html_text import parse

HOSTILE = '<script>alert("x")</script>'


def test_no_jobs_yet_says_how_to_start(browser: TestClient) -> None:
    page = browser.get("/")
    assert page.status_code == 200
    assert "No jobs yet." in page.text
    assert 'href="/new"' in page.text


def test_a_row_tells_state_in_words_progress_and_p(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job("job-a", last_p=0.91)
    job.metrics([{"step": 3, "update": -1, "name": "reward", "value": 0.625}])
    api.add_job("job-b", {**SPEC, "name": "geometric", "algorithm": {"name": "gmpo"}}, state=JobState.QUEUED)
    rows = parse(browser.get("/").text).one("tbody").all("tr")
    first = [cell.words for cell in rows[0].children if not isinstance(cell, str)]
    assert first[0].startswith("sorting")
    assert first[1].startswith("running")
    assert first[2] == "33/12"  # the bar's fallback text, then the count
    assert first[3] == "0.6250"
    assert first[6] == "0.9100"
    assert rows[0].one("progress").attributes["max"] == "12"
    assert rows[1].all("td")[5].words == "–"  # no step yet


def test_p_comes_with_the_trajectories_behind_it(browser: TestClient, api: FakeApi) -> None:
    api.add_job("job-a", last_p=0.8, last_p_defined=8, last_p_undefined=56)
    api.add_job("job-b", last_p=0.9)  # of an objective or a time without these numbers
    api.add_job("job-c")
    rows = parse(browser.get("/").text).one("tbody").all("tr")
    assert [row.one("td", data_label="p").words for row in rows] == ["0.80008 of 64", "0.9000", "–"]


def test_the_list_asks_for_no_job_s_numbers(
    browser: TestClient, api: FakeApi, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AsyncClient, "metrics", None)
    api.add_job("job-a", step=3, last_p=0.8)
    assert "0.8000" in browser.get("/").text


def test_filters_and_cursor_reach_the_api_and_stay_in_the_links(browser: TestClient, api: FakeApi) -> None:
    for number in range(30):
        api.add_job(f"job-{number:02d}")
    api.add_job("job-other", {**SPEC, "name": "other"}, state=JobState.FAILED)
    first = parse(browser.get("/?name=sorting").text)
    assert len(first.one("tbody").all("tr")) == 25
    following = first.one("a", rel="next").attributes["href"]
    assert "name=sorting" in following
    assert len(parse(browser.get(following).text).one("tbody").all("tr")) == 5
    failed = parse(browser.get("/?state=failed").text)
    assert [a.text for a in failed.one("tbody").all("a")] == ["other"]
    assert "No job matches." in browser.get("/?name=nothing").text


def test_an_unknown_state_is_refused(browser: TestClient) -> None:
    page = browser.get("/?state=sleeping")
    assert page.status_code == 400
    assert "state must be one of validating" in page.text


def test_htmx_gets_the_table_alone(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    part = browser.get("/", headers={"HX-Request": "true"})
    assert part.text.lstrip().startswith('<div id="jobs"')
    assert "<html" not in part.text


def test_names_are_escaped_everywhere(browser: TestClient, api: FakeApi) -> None:
    api.add_job("job-x", {**SPEC, "name": HOSTILE}, phase=HOSTILE)
    for path in (
        "/",
        "/jobs/job-x",
        "/jobs/job-x/charts",
        "/jobs/job-x/system",
        "/jobs/job-x/spec",
        "/jobs/job-x/cancel",
        "/jobs/job-x/log",
        "/jobs/job-x/steps/latest",
        "/new?from=job-x",
    ):
        page = browser.get(path)
        assert page.status_code == 200, path
        assert "<script>alert" not in page.text, path
        assert "alert(" in page.text, path


def test_the_list_shows_owner_and_held_out_result(browser: TestClient, api: FakeApi) -> None:
    api.add_job("job-a", owner="ada", held_out_before=0.31, held_out=0.82)
    api.add_job("job-b", held_out_before=0.31, held_out=0.31)
    first, second = parse(browser.get("/").text).one("tbody").all("tr")
    assert first.one("td", data_label="Owner").words == "ada"
    assert first.one("td", data_label="Held-out").words == "0.3100 → 0.8200"
    assert second.one("td", data_label="Held-out").words == "0.3100"


def test_a_heading_sorts_and_a_second_click_turns_the_order_round(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    page = parse(browser.get("/?name=sort").text)
    assert [th.text.split()[0] for th in page.all("th", aria_sort="descending")] == ["Submitted"]
    seen = []
    for _ in range(3):
        address = page.one("a", id="sort-reward").attributes["href"]
        assert "name=sort" in address
        page = parse(browser.get(address).text)
        seen.append(api.sorts[-1])
    assert seen == ["-reward", "reward", "-reward"]
    assert page.one("div", id="jobs").attributes["hx-get"].endswith("sort=-reward")
    assert browser.get("/?sort=colour").status_code == 400
