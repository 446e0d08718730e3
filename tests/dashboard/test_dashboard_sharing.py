"""What the cluster is used for: lanes, the queue, quotas, GPU-hours, and why a job waits."""

from datetime import timedelta
from typing import Any

import pytest
from starlette.testclient import TestClient

from dashboard.cluster import bars, counts, places
from powermean.contracts.api import JobState, NodeView
from powermean.contracts.attempts import GpuInfo
from powermean.contracts.lanes import ClusterLanes, Lane, LaneAttempt, Span
from powermean.contracts.sharing import (
    ClusterShare,
    ClusterTotals,
    Needs,
    ProjectQuota,
    Queue,
    QueuedJob,
    QuotaList,
    Share,
    Usage,
    UsageRow,
)
from tests.support.fake_api import NOW, FakeApi
from tests.support.html_text import parse
from tests.support.sample_people import project


def lane(slot: int, *spans: Span, **changes: Any) -> Lane:
    return Lane(node="n1", gpu=f"GPU-{slot}", slot=slot, spans=spans, busy_s=1800 if spans else 0, **changes)


def node(**changes: Any) -> NodeView:
    gpus = tuple(GpuInfo(uuid=f"GPU-{n}", name="H100", memory_mb=81_559) for n in range(4))
    given: dict[str, Any] = {
        "id": "n1", "hostname": "n1", "gpus": gpus, "cpu_slots": 0, "engines": (), "version": "0",
        "alive": True, "seen_at": NOW, "attempts": (),
    }  # fmt: skip
    return NodeView(**(given | changes))


def lanes() -> ClusterLanes:
    half = NOW - timedelta(minutes=30)
    return ClusterLanes(
        since=NOW - timedelta(hours=1),
        until=NOW,
        lanes=(
            lane(0, Span(start=half, attempt="job-a.1")),
            lane(1, Span(start=half, attempt=None)),
            lane(2, Span(start=half, end=NOW, attempt="job-b.1")),
            lane(3, engine="smol"),
        ),
        attempts={
            name: LaneAttempt(job=name[:5], name=f"<i>{name}</i>", project="vision", state="running")
            for name in ("job-a.1", "job-b.1")
        },
        phases=True,
    )


def queued(job_id: str = "job-q", **changes: Any) -> QueuedJob:
    given: dict[str, Any] = {
        "id": job_id, "name": "later", "project": "vision", "owner": "Ada", "priority": "high", "position": 3,
        "since": NOW, "needs": Needs(gpus=2), "kind": "busy", "reason": "needs 2 GPUs; <b>n3</b> has 1",
        "help": "Ask for 1 GPU.", "ahead": ("job-a",), "ahead_own": 1, "ahead_others": 1,
        "starts_at": NOW + timedelta(hours=1), "basis": "job-a has 20 steps left",
    }  # fmt: skip
    return QueuedJob(**(given | changes))


def quota(name: str = "vision", used: int = 6, limit: int | None = 8) -> ProjectQuota:
    share = Share(quota=4, limit=limit, used=used)
    return ProjectQuota(
        project=name, title=name.capitalize(), gpus=share, cpu_slots=Share(quota=0, limit=None, used=0),
        weight=1.5, version=7,
    )  # fmt: skip


def test_places_now_and_how_busy_they_were(browser: TestClient, api: FakeApi) -> None:
    api.lanes, api.nodes = lanes(), [node()]
    text = browser.get("/cluster").text
    section = parse(text).one("section", id="places")
    rows = [row.words for row in section.one("tbody").all("tr")]
    assert "<i>job" not in text
    assert "job-a.1" in rows[0]
    assert "50.0 %" in rows[0]
    assert parse(text).one("a", id="lane-n1-gpu-0").attributes["href"] == "/jobs/job-a"
    assert "another project" in rows[1]
    assert "idle" in rows[2]
    assert "shared engine smol" in rows[3]
    assert "3 of 4" in section.words


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"closed": "draining", "closed_reason": "new driver"}, "draining: new driver"),
        ({"full_disk": "/data"}, "the disk of /data is full"),
    ],
)
def test_idle_gpus_that_nobody_gets_say_why(changes: dict[str, Any], said: str) -> None:
    found = places(lanes(), [node(**changes)])
    assert {place.out for place in found} == {said}
    amounts = counts(found)
    assert (amounts.total, amounts.taken, amounts.idle, amounts.unusable) == (4, 3, 0, 1)


def test_the_queue_shows_reasons_and_counts_others(browser: TestClient, api: FakeApi) -> None:
    api.queue = Queue(items=(queued(),), others=7)
    section = parse(browser.get("/cluster").text).one("section", id="queue")
    for words in (
        "later",
        "priority high",
        "2 GPUs",
        "<b>n3</b> has 1",
        "Ask for 1 GPU.",
        "7 of other projects",
    ):
        assert words in section.words
    assert "<html" not in browser.get("/cluster/part/queue").text
    assert browser.get("/cluster/part/nothing").status_code == 404


def test_bars_are_on_one_scale_and_within_it() -> None:
    some = QuotaList(items=(quota(), quota("big", used=16, limit=None)))
    small, big = (bars(one, some)["gpus"] for one in some.items)
    assert (small.own, small.borrowed, small.quota, small.limit) == (25, 12.5, 25, 50)
    assert (big.own, big.borrowed, big.limit) == (25, 75, None)


def test_quotas_with_use_and_too_much_promised(browser: TestClient, api: FakeApi) -> None:
    slots = ClusterShare(total=0, used=0, quotas=0)
    totals = ClusterTotals(gpus=ClusterShare(total=3, used=3, quotas=4), cpu_slots=slots)
    api.quotas = QuotaList(items=(quota(),), cluster=totals)
    section = parse(browser.get("/cluster").text).one("section", id="quotas")
    for words in ("6 used, 4 guaranteed", "2 borrowed", "at most 8", "1 too few"):
        assert words in section.words
    assert "style=" not in browser.get("/cluster").text


def test_a_waiting_job_says_why(browser: TestClient, api: FakeApi) -> None:
    api.add_job("job-q", state=JobState.QUEUED, attempt=0, attempts=())
    api.queue = Queue(items=(queued(),), others=1)
    box = parse(browser.get("/jobs/job-q").text).one("section", id="waiting")
    assert "Number 3 in the queue" in box.words
    assert "behind 1 of your projects' jobs and 1 of other projects" in box.words
    for words in ("<b>n3</b> has 1", "Ask for 1 GPU.", "job-a has 20 steps left"):
        assert words in box.words
    assert "every 10s" in box.attributes["hx-trigger"]
    api.queue = Queue(items=(), others=0)  # it has just started
    assert (
        "hidden"
        in parse(browser.get("/jobs/job-q/part/waiting").text).one("section", id="waiting").attributes
    )


def test_a_running_job_has_no_such_box(browser: TestClient, api: FakeApi) -> None:
    api.add_job("job-a")
    assert "hidden" in parse(browser.get("/jobs/job-a").text).one("section", id="waiting").attributes


def test_gpu_hours_as_a_table_with_its_csv(browser: TestClient, api: FakeApi) -> None:
    row = UsageRow(key="job-a", name="<i>a</i>", project="vision", gpu_hours=12.345, cpu_slot_hours=0, jobs=1)
    gone = row.model_copy(update={"key": "job-z", "name": None})
    total = UsageRow(key="total", gpu_hours=24.69, cpu_slot_hours=0, jobs=2)
    api.usage = Usage(start=NOW, end=NOW, by="job", rows=(row, gone), total=total, left_out=3)
    page = browser.get("/usage?by=job&from=2026-01-01&to=2026-01-05")
    words = parse(page.text).one("table").words
    assert "<i>a</i>" not in page.text
    for said in ("12.35", "deleted", "job-z", "24.69"):
        assert said in words
    assert parse(page.text).one("a", id="csv").attributes["href"].startswith("/v1/usage.csv?by=job&")
    for query in ("by=colour", "from=yesterday", "to=9999-12-31", "to=0001-01-01"):
        assert browser.get(f"/usage?{query}").status_code == 400


def test_administrators_change_a_quota(browser: TestClient, api: FakeApi) -> None:
    api.projects = [project("vision", role="admin")]
    api.quotas = QuotaList(items=(quota(),))
    page = parse(browser.get("/projects/vision/quota").text)
    assert page.one("input", id="gpu_limit").attributes["value"] == "8"
    form = {
        "gpu_quota": "5",
        "gpu_limit": "",
        "cpu_quota": "0",
        "cpu_limit": "2",
        "weight": "2",
        "version": "7",
    }
    answer = browser.post("/projects/vision/quota", data=form)
    assert (answer.status_code, answer.headers["location"]) == (303, "/projects/vision/quota?changed")
    assert api.changed_quotas == [
        {"gpu_quota": 5, "gpu_limit": None, "cpu_quota": 0, "cpu_limit": 2, "weight": 2.0, "version": 7}
    ]


def test_a_wrong_quota_is_told_at_its_field_and_kept(browser: TestClient, api: FakeApi) -> None:
    api.projects = [project("vision", role="admin")]
    api.quotas = QuotaList(items=(quota(),))
    form = {
        "gpu_quota": "many",
        "gpu_limit": "2",
        "cpu_quota": "0",
        "cpu_limit": "",
        "weight": "0",
        "version": "7",
    }
    answer = browser.post("/projects/vision/quota", data=form)
    assert answer.status_code == 422
    page = parse(answer.text)
    assert page.one("input", id="gpu_quota").attributes["value"] == "many"
    assert "gpu_quota" in page.one("div", role="alert").words
    assert api.changed_quotas == []


def test_a_change_of_somebody_else_is_shown_and_the_next_try_is_about_it(
    browser: TestClient, api: FakeApi
) -> None:
    api.projects = [project("vision", role="admin")]
    api.quotas = QuotaList(items=(quota(),))
    form = {
        "gpu_quota": "5",
        "gpu_limit": "",
        "cpu_quota": "0",
        "cpu_limit": "",
        "weight": "1",
        "version": "6",
    }
    answer = browser.post("/projects/vision/quota", data=form)
    assert answer.status_code == 409
    page = parse(answer.text)
    assert "is now 7" in page.one("div", role="alert").words
    assert page.one("input", name="version").attributes["value"] == "7"
    assert page.one("input", id="gpu_quota").attributes["value"] == "5"


def test_members_see_their_quota_and_no_form(browser: TestClient, api: FakeApi) -> None:
    api.projects = [project("vision", role="member")]
    api.quotas = QuotaList(items=(quota(),))
    text = browser.get("/projects/vision/quota").text
    assert "Administrators change it." in text
    assert 'name="version"' not in text
