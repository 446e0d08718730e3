import json

import pytest
from starlette.testclient import TestClient

from dashboard.jobs import Exponent, newest_exponent
from powermean.contracts.api import CheckpointView, JobState
from powermean.contracts.artefacts import ArtefactRef, Manifest
from powermean.contracts.attempts import JobError, JobResult
from powermean.contracts.health import Finding
from powermean.contracts.metrics import MetricsHistory, Point, Series
from tests.support.fake_api import NOW, SPEC, FakeApi
from tests.support.html_text import parse

HOSTILE = '<script>alert("x")</script>'


def test_no_jobs_yet_says_how_to_start(browser: TestClient) -> None:
    page = browser.get("/")
    assert page.status_code == 200
    assert "No jobs yet." in page.text
    assert 'href="/new"' in page.text


def test_a_row_tells_state_in_words_progress_and_p(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job("job-a")
    job.metrics([{"step": 3, "update": 3, "name": "p/mean", "value": 0.91}])
    job.metrics([{"step": 3, "update": -1, "name": "reward", "value": 0.625}])
    api.add_job("job-b", {**SPEC, "name": "geometric", "algorithm": {"name": "gmpo"}}, state=JobState.QUEUED)
    rows = parse(browser.get("/").text).one("tbody").all("tr")
    first = [cell.words for cell in rows[0].children if not isinstance(cell, str)]
    assert first[0].startswith("sorting")
    assert first[1].startswith("running")
    assert first[2] == "33/12"  # the bar's fallback text, then the count
    assert first[3] == "0.6250"
    assert first[5] == "0.9100"
    assert rows[0].one("progress").attributes["max"] == "12"
    assert rows[1].all("td")[4].words == "–"  # no step yet


def test_p_is_of_the_last_pass_and_says_how_many_trajectories_are_behind_it() -> None:
    def history(*points: tuple[str, int, int, float | None]) -> MetricsHistory:
        return MetricsHistory(
            seq=1,
            series=tuple(
                Series(name=name, points=(Point(step=step, update=update, value=value),))
                for name, step, update, value in points
            ),
        )

    pooled = [("p/last_pass/mean", 3, -1, 0.8), ("p/last_pass/defined", 3, -1, 8.0)]
    pooled += [("p/last_pass/undefined", 3, -1, 56.0)]
    assert newest_exponent(history(("p/mean", 3, 3, 0.9), *pooled)) == Exponent(0.8, 3, 8, 64)
    assert newest_exponent(history(("p/mean", 4, 3, 0.9), *pooled)) == Exponent(0.9, 4)
    assert newest_exponent(history(("p/mean", 4, 3, None), *pooled[1:])) is None


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
        "/jobs/job-x/cancel",
        "/jobs/job-x/log",
        "/jobs/job-x/steps/latest",
        "/new?from=job-x",
    ):
        page = browser.get(path)
        assert page.status_code == 200, path
        assert "<script>alert" not in page.text, path
        assert "alert(" in page.text, path


def test_a_running_job(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    job.metrics(
        [
            {"step": 2, "update": -1, "name": "reward", "value": 0.5},
            {"step": 2, "update": 0, "name": "p/mean", "value": 1.0},
            {"step": 2, "update": 1, "name": "p/mean", "value": 0.875},
        ]
    )
    job.checkpoints.append(CheckpointView(step=2, attempt=1, size=1_600_000_000, created_at=NOW))
    page = parse(browser.get("/jobs/job-a").text)
    header = page.one("section", id="job-header")
    assert "1 min 15 s" in header.words
    assert "sampling" in header.words
    assert header.attributes["hx-get"] == "/jobs/job-a/part/header"
    values = page.one("section", id="latest").words
    assert "By update within step 2" in values
    assert "p/mean 1 0.8750 mean power-mean exponent" in values
    assert "reward 0.5000 2 mean reward of all completions sampled in the step" in values
    outcome = page.one("section", id="outcome").words
    assert "1.6 GB" in outcome
    assert "trainer on node-a, CPU" in outcome
    assert "learning_rate: 1.0e-06" in page.one("pre", **{"class": "yaml"}).text
    told = json.loads(page.one("script", id="job-data").text)
    assert (told["updates"], told["minibatches"], told["onPolicy"]) == (4, 2, False)


def test_a_finished_job_offers_its_model(browser: TestClient, api: FakeApi) -> None:
    file = ArtefactRef(key="jobs/a/model", sha256="ab" * 32, size=537_000_000)
    result = JobResult(
        steps=12,
        reward_before=0.31,
        reward_after=0.86,
        tokens=2544,
        model=Manifest(files={"a b/model#1.safetensors": file}),
    )
    api.add_job(state=JobState.FINISHED, result=result, finished_at=NOW)
    page = parse(browser.get("/jobs/job-a").text)
    assert page.one("a", download="").attributes["href"] == "/v1/jobs/job-a/files/a%20b/model%231.safetensors"
    assert "0.3100" in page.one("section", id="outcome").words
    assert "0.8600" in page.one("section", id="outcome").words
    assert "hx-get" not in page.one("section", id="job-header").attributes
    assert not page.all("a", id="cancel-link")


def test_a_failed_job_says_what_where_and_what_to_do(browser: TestClient, api: FakeApi) -> None:
    error = JobError(
        code="out_of_memory",
        message=f"no memory {HOSTILE}",
        path="training.micro_batch_tokens",
        remedy="Halve it.",
    )
    api.add_job(state=JobState.FAILED, error=error, finished_at=NOW)
    said = parse(browser.get("/jobs/job-a").text).one("div", role="alert").words
    for part in ("out_of_memory", HOSTILE, "training.micro_batch_tokens", "Halve it."):
        assert part in said


def test_a_job_without_numbers_says_so(browser: TestClient, api: FakeApi) -> None:
    api.add_job(state=JobState.QUEUED, attempts=(), attempt=0, started_at=None, seconds_left=None)
    page = browser.get("/jobs/job-a")
    assert "No numbers yet." in page.text
    assert "the job is waiting for a node" in page.text


@pytest.mark.parametrize("part", ["header", "health", "latest", "outcome"])
def test_parts_are_what_the_page_holds(browser: TestClient, api: FakeApi, part: str) -> None:
    api.add_job()
    identity = {"header": "job-header"}.get(part, part)
    answer = browser.get(f"/jobs/job-a/part/{part}", headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert parse(answer.text).one("section", id=identity)
    assert "<html" not in answer.text


def test_health_is_told_in_words_and_escaped(browser: TestClient, api: FakeApi) -> None:
    fake = api.add_job()
    assert "Too early to say" in parse(browser.get("/jobs/job-a").text).one("section", id="health").words
    fake.finding = Finding(code="clipping", level="bad", message="12 % of <b>tokens</b>", remedy="Lower it.")
    health = parse(browser.get("/jobs/job-a/part/health").text).one("section", id="health")
    assert health.words == "Bad: 12 % of <b>tokens</b>. Lower it."
    assert health.one("p", class_="health-bad")
    assert health.attributes["hx-get"] == "/jobs/job-a/part/health"


def test_cancel_asks_and_then_cancels(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    question = parse(browser.get("/jobs/job-a/cancel").text)
    assert question.one("form", action="/jobs/job-a/cancel").attributes["method"] == "post"
    assert job.job.state == JobState.RUNNING
    done = browser.post("/jobs/job-a/cancel")
    assert done.status_code == 303
    assert done.headers["location"] == "/jobs/job-a"
    assert job.job.state == JobState.CANCELLED
    assert "already ended" in browser.get("/jobs/job-a/cancel").text


def test_another_site_cannot_cancel(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    for origin in ("https://evil.example", "null", "http://testserver.evil.example"):
        assert browser.post("/jobs/job-a/cancel", headers={"Origin": origin}).status_code == 403
    assert job.job.state == JobState.RUNNING


def test_what_is_not_there(browser: TestClient, api: FakeApi) -> None:
    api.add_job()
    for path in ("/jobs/job-zz", "/jobs/job-a/part/nothing", "/nowhere", "/jobs/job-a/steps/one"):
        page = browser.get(path)
        assert page.status_code == 404, path
        assert parse(page.text).one("div", role="alert").words, path
    unknown = browser.get("/v1/nowhere")
    assert unknown.status_code == 404
    assert unknown.json()["error"]["code"] == "not_found"
