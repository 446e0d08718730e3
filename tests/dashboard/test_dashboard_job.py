import json

import pytest
from starlette.testclient import TestClient

from powermean.contracts.api import CheckpointView, JobState
from powermean.contracts.artefacts import ArtefactRef, Manifest
from powermean.contracts.attempts import JobError, JobResult
from powermean.contracts.forks import Fork, ForkedFrom
from powermean.contracts.health import Finding
from tests.support.fake_api import NOW, FakeApi
from tests.support.html_text import parse

HOSTILE = '<script>alert("x")</script>'


def test_a_running_job(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job(owner="ada")
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
    assert header.attributes["hx-get"] == "/jobs/job-a/part/header"
    assert "about 1 min 15 s" in page.one("section", id="facts").words
    assert " by ada" in page.one("section", id="facts").words
    told = json.loads(page.one("script", id="job-data").text)
    assert (told["updates"], told["minibatches"], told["onPolicy"]) == (4, 2, False)
    charts = parse(browser.get("/jobs/job-a/charts").text)
    assert "open" not in charts.one("details").attributes
    values = charts.one("section", id="latest").words
    assert "By update within step 2" in values
    assert "p/mean 1 0.8750 mean power-mean exponent" in values
    assert "reward 0.5000 2 mean reward of all completions sampled in the step" in values
    outcome = page.one("section", id="outcome").words
    assert "1.6 GB" in outcome
    assert "trainer on node-a, CPU" in outcome
    spec = parse(browser.get("/jobs/job-a/spec").text)
    assert "learning_rate: 1.0e-06" in spec.one("pre", **{"class": "yaml"}).text


def test_a_fork_and_its_parent_lead_to_each_other(browser: TestClient, api: FakeApi) -> None:
    forks = tuple(Fork(job="job-c", name=HOSTILE, state="running", step=step) for step in (2, None))
    api.add_job(model="job-b@4", forked_from=ForkedFrom(job="job-b", step=4), forks=forks)
    page = parse(browser.get("/jobs/job-a").text)
    link = page.one("a", id="forked-from")
    assert (link.attributes["href"], link.words) == ("/jobs/job-b", "job-b@4")
    shown = page.one("ul", id="forks")
    assert [one.attributes["href"] for one in shown.all("a")] == ["/jobs/job-c"] * 2
    assert f"{HOSTILE} step 2, running" in shown.words
    assert "final model, running" in shown.words


def test_the_best_checkpoint_says_why_it_is(browser: TestClient, api: FakeApi) -> None:
    facts = {"attempt": 1, "size": 10, "created_at": NOW, "metric": "eval/reward"}
    api.add_job().checkpoints += [
        CheckpointView(step=2, value=0.75, best=True, **facts),
        CheckpointView(step=4, value=0.5, **facts),
    ]
    outcome = parse(browser.get("/jobs/job-a").text).one("section", id="outcome").words
    assert "best: eval/reward 0.7500" in outcome
    assert "0.5" not in outcome.replace("0.7500", "")


@pytest.mark.parametrize("tab", ["", "/charts", "/steps/latest", "/system", "/spec", "/log"])
def test_each_tab_has_its_address_and_knows_where_it_is(browser: TestClient, api: FakeApi, tab: str) -> None:
    api.add_job()
    page = parse(browser.get(f"/jobs/job-a{tab}").text)
    tabs = page.one("nav", class_="tabs")
    assert tabs.one("a", aria_current="page").attributes["href"] == f"/jobs/job-a{tab}"
    assert len(tabs.all("a")) == 6
    assert page.one("h1").text == "sorting"
    assert "Running 0/12 · sorting" in page.one("title").text


def test_the_stages_show_what_the_job_does(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job(state=JobState.QUEUED, phase="waiting for a free CPU slot", attempt=0, attempts=())
    now = parse(browser.get("/jobs/job-a").text).one("li", aria_current="step")
    assert now.words == "queued waiting for a free CPU slot"
    job.update(state=JobState.RUNNING, phase="step 3 of 12: updating, 2 of 4")
    header = parse(browser.get("/jobs/job-a/part/header").text)
    assert header.one("ol").attributes["aria-label"] == "Step 3 of 12"
    assert header.one("li", aria_current="step").words == "updating 2 of 4"
    job.update(state=JobState.FINISHED, finished_at=NOW)
    assert not parse(browser.get("/jobs/job-a").text).all("ol")


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
    text = browser.get("/jobs/job-a").text
    assert text.index("The job has failed") < text.index("Parts of the job")  # before anything else
    assert "Too early" not in text
    assert parse(text).one("a", id="copy-link").attributes["href"] == "/new?from=job-a"
    assert "Edit and resubmit" in text
    said = parse(text).one("div", role="alert").words
    for part in ("out_of_memory", HOSTILE, "training.micro_batch_tokens", "Halve it."):
        assert part in said
    several = error.model_copy(update={"message": f"{error.path}: no memory\nseed: too low"})
    api.add_job(state=JobState.FAILED, error=several, finished_at=NOW)
    said = parse(browser.get("/jobs/job-a").text).one("div", role="alert").words
    assert said.count("training.micro_batch_tokens") == 1


def test_a_job_without_numbers_says_so(browser: TestClient, api: FakeApi) -> None:
    api.add_job(state=JobState.QUEUED, attempts=(), attempt=0, started_at=None, seconds_left=None)
    page = browser.get("/jobs/job-a")
    assert "No numbers yet." in page.text
    assert "the job is waiting for a node" in page.text
    assert "Time left" not in page.text


@pytest.mark.parametrize("part", ["header", "facts", "health", "latest", "outcome"])
def test_parts_are_what_the_page_holds(browser: TestClient, api: FakeApi, part: str) -> None:
    api.add_job()
    identity = {"header": "job-header"}.get(part, part)
    answer = browser.get(f"/jobs/job-a/part/{part}", headers={"HX-Request": "true"})
    assert answer.status_code == 200
    assert parse(answer.text).one("section", id=identity)
    assert "<html" not in answer.text


def test_health_is_told_in_words_and_escaped(browser: TestClient, api: FakeApi) -> None:
    fake = api.add_job(step=1)
    assert "Too early to say" in parse(browser.get("/jobs/job-a").text).one("section", id="health").words
    early = parse(browser.get("/jobs/job-a").text).one("section", id="health")
    assert not early.all("p", class_="health-ok")  # nothing is known yet, so nothing is green
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


def test_a_job_is_paused_and_resumed(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    page = parse(browser.get("/jobs/job-a").text)
    assert page.one("form", action="/jobs/job-a/pause").one("button", id="pause").words == "Pause"
    done = browser.post("/jobs/job-a/pause")
    assert (done.status_code, done.headers["location"]) == (303, "/jobs/job-a")
    header = parse(browser.get("/jobs/job-a").text).one("section", id="job-header")
    assert "pausing" in header.words
    job.set_state(JobState.PAUSED, pause_requested=False, phase="paused by Ada <b>")
    page = parse(browser.get("/jobs/job-a").text)
    assert "Paused by Ada <b>. Its checkpoints are kept" in page.one("section", id="job-header").words
    assert not page.all("button", id="pause")
    assert "paused" in parse(browser.get("/").text).one("td", **{"data-label": "State"}).words
    page.one("form", action="/jobs/job-a/resume").one("button", id="resume")
    assert browser.post("/jobs/job-a/resume").status_code == 303
    assert job.job.state == JobState.QUEUED


def test_a_priority_is_changed_or_the_question_stays_with_the_reason(
    browser: TestClient, api: FakeApi
) -> None:
    job = api.add_job()
    link = parse(browser.get("/jobs/job-a").text).one("a", id="priority-link")
    form = parse(browser.get(link.attributes["href"]).text).one("form", action="/jobs/job-a/priority")
    assert [one.attributes["value"] for one in form.all("option")] == ["high", "normal", "low"]
    refused = browser.post("/jobs/job-a/priority", data={"priority": "high"})
    assert refused.status_code == 403
    assert "high needs a maintainer" in parse(refused.text).one("div", role="alert").words
    assert browser.post("/jobs/job-a/priority", data={"priority": "low"}).status_code == 303
    assert job.job.priority == "low"
    assert "priority low" in parse(browser.get("/").text).one("td", **{"data-label": "State"}).words


def test_the_order_to_leave_is_shown_with_its_cause_and_its_times(browser: TestClient, api: FakeApi) -> None:
    ordered = {"order_cause": "preempted", "order_reason": "preempted by job-17", "ordered_at": NOW}
    (attempt,) = api.add_job().job.attempts
    api.find("job-a").set_state(JobState.RUNNING, attempts=(attempt.model_copy(update=ordered),))
    page = parse(browser.get("/jobs/job-a").text)
    assert "frees its place: preempted by job-17." in page.one("section", id="job-header").words
    assert "ordered to stop" in page.one("section", id="outcome").words


def test_the_limit_that_ends_a_job_early_is_said_before_and_after(browser: TestClient, api: FakeApi) -> None:
    ordered = {"order_cause": "limit", "order_reason": "limits.wall_hours: 2 of 2 hours", "ordered_at": NOW}
    job = api.add_job()
    (attempt,) = job.job.attempts
    job.set_state(JobState.RUNNING, attempts=(attempt.model_copy(update=ordered),))
    header = parse(browser.get("/jobs/job-a").text).one("section", id="job-header")
    assert "It finishes with this step: limits.wall_hours: 2 of 2 hours." in header.words
    assert not header.all("button", id="pause")
    job.set_state(JobState.FINISHED, ended_by="limits.wall_hours: 2 of 2 hours", finished_at=NOW)
    header = parse(browser.get("/jobs/job-a").text).one("section", id="job-header")
    assert "Ended early by limits.wall_hours: 2 of 2 hours." in header.words


def test_another_site_cannot_cancel(browser: TestClient, api: FakeApi) -> None:
    job = api.add_job()
    for origin in ("https://evil.example", "null", "http://testserver.evil.example"):
        for what in ("cancel", "pause", "resume", "priority"):
            assert browser.post(f"/jobs/job-a/{what}", headers={"Origin": origin}).status_code == 403
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
