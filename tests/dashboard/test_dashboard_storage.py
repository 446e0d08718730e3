"""What a project stores, and deleting it, page by page."""

from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from powermean.contracts.api import JobState
from powermean.contracts.storage import ProjectStorage, Retention, StorageUse, StoredThing
from tests.support.fake_api import NOW, FakeApi
from tests.support.html_text import parse

USES = (
    StorageUse(kind="datasets", bytes=1000, count=1),
    StorageUse(kind="checkpoints", bytes=5_000_000_000, count=3),
)
LARGEST = (
    StoredThing(kind="checkpoints", bytes=5_000_000_000, id="job-a", name="<i>sorting</i>", step=20),
    StoredThing(kind="checkpoints", bytes=4_000, id="job-a", name="sorting", step=10, pinned=True),
    StoredThing(kind="models", bytes=3_000, id="job-a", name="sorting"),
    StoredThing(kind="trajectories", bytes=2_000, id="job-a", name="sorting"),
    StoredThing(kind="datasets", bytes=1_000, id="ds-1", name="sums"),
)


@pytest.fixture
def stored(api: FakeApi) -> FakeApi:
    api.add_job(state=JobState.FINISHED, finished_at=NOW + timedelta(hours=1))
    api.storage = ProjectStorage(
        project="default",
        bytes=5_000_001_000,
        limit=6_000_000_000,
        over_limit=False,
        uses=USES,
        largest=LARGEST,
    )
    return api


def test_what_takes_the_space(browser: TestClient, stored: FakeApi) -> None:
    answer = browser.get("/projects/default/storage")
    page = parse(answer.text)
    rows = [row.words for row in page.all("tbody")[0].all("tr")]
    assert "Checkpoints" in rows[0]  # the most first
    assert "5.0 GB" in rows[0]
    assert "<i>" not in answer.text.replace('<i aria-hidden="true">', "")
    links = [link.attributes["href"] for link in page.all("tbody")[1].all("a")]
    assert [link for link in links if link.endswith("/delete")] == [
        "/jobs/job-a/checkpoints/20/delete",
        "/jobs/job-a/model/delete",
        "/jobs/job-a/delete",
        "/datasets/ds-1/delete",
    ]  # and none for the pinned one
    assert [
        button.attributes["value"]
        for button in page.all("button")
        if button.attributes.get("name") == "pinned"
    ] == [
        "yes",
        "no",
    ]
    assert "quota_exceeded" not in answer.text
    used = tuple(thing.model_copy(update={"in_use": "the job is running"}) for thing in LARGEST)
    stored.storage = stored.storage.model_copy(update={"largest": used})
    offered = browser.get("/projects/default/storage").text
    assert "/delete" not in offered
    assert "the job is running" in offered
    stored.storage = stored.storage.model_copy(update={"over_limit": True})
    assert "Jobs that run go on." in browser.get("/projects/default/storage").text


def test_the_rules_are_said(browser: TestClient, stored: FakeApi) -> None:
    stored.retention = Retention(texts_days=30, checkpoints_last=2, checkpoints_best=True)
    text = browser.get("/projects/default/storage").text
    assert "30 days after the job" in text
    assert "the last 2, the best and pinned ones" in text


def test_storage_leads_to_the_caller_s_project(browser: TestClient, stored: FakeApi) -> None:
    assert browser.get("/storage").headers["location"] == "/projects/default/storage"


@pytest.mark.parametrize(
    ("path", "asked", "back"),
    [
        ("/jobs/job-a/delete", "jobs/job-a", "/"),
        ("/jobs/job-a/model/delete", "jobs/job-a/files", "/projects/default/storage"),
        ("/jobs/job-a/checkpoints/20/delete", "jobs/job-a/checkpoints/20", "/projects/default/storage"),
        ("/datasets/ds-1/delete", "datasets/ds-1", "/projects/default/storage"),
    ],
)
def test_deleting_asks_and_then_deletes(
    browser: TestClient, stored: FakeApi, path: str, asked: str, back: str
) -> None:
    question = browser.get(path)
    assert question.status_code == 200
    assert parse(question.text).one("form", action=path).attributes["method"] == "post"
    assert stored.deleted == []
    foreign = browser.post(path, headers={"Origin": "http://elsewhere"})
    assert (foreign.status_code, stored.deleted) == (403, [])
    done = browser.post(path)
    assert (done.status_code, done.headers["location"]) == (303, back)
    assert stored.deleted == [asked]


def test_a_refusal_is_shown_where_it_was_asked(browser: TestClient, stored: FakeApi) -> None:
    stored.refuses_deletion = "a replay needs it"
    answer = browser.post("/jobs/job-a/delete")
    assert answer.status_code == 409
    assert "a replay needs it" in answer.text


def test_only_ended_jobs_offer_it(browser: TestClient, api: FakeApi) -> None:
    api.add_job("job-a")
    assert "Delete job" not in browser.get("/jobs/job-a").text
    assert "cancel it first" in browser.get("/jobs/job-a/delete").text
    api.add_job("job-b", state=JobState.FAILED, finished_at=NOW)
    assert parse(browser.get("/jobs/job-b").text).one("a", id="delete-link")
