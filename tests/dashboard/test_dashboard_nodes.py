"""A node's page, and its buttons for administrators."""

from datetime import UTC, datetime

import pytest
from starlette.testclient import TestClient

from powermean.contracts.api import NodeDrain, NodeView
from powermean.contracts.attempts import AttemptUse, GpuInfo
from tests.support.fake_api import NOW, FakeApi, project
from tests.support.html_text import parse

NODE = NodeView(
    id="node-a",
    hostname="<i>a</i>",
    gpus=(
        GpuInfo(
            uuid="GPU-1", name="H100", memory_mb=81_559, utilisation=97, memory_used_mb=1024, power_w=500
        ),
        GpuInfo(uuid="GPU-2", name="H100", memory_mb=81_559, unhealthy="Xid 79: <b>"),
    ),
    cpu_slots=2,
    engines=("transformers",),
    labels={"zone": "a"},
    version="0.1.0",
    alive=True,
    seen_at=NOW,
    attempts=("job-a.2",),
    other_attempts=1,
    use=(AttemptUse(attempt_id="job-a.2", cpu=1.25, memory_mb=1000),),
    missing_gpus=("GPU-3",),
    blind=("Xid errors",),
)


@pytest.fixture(autouse=True)
def one_node(api: FakeApi) -> None:
    api.nodes = [NODE]


def test_what_it_has_how_its_gpus_are_and_what_runs_there(browser: TestClient) -> None:
    page = browser.get("/nodes/node-a").text
    words = parse(page).one("main").words
    assert "<i>a</i>" not in page
    for said in (
        "zone=a",
        "97 %",
        "500 W",
        "1.0 of 79.6 GiB",
        "Xid 79: <b>: it gets no work",
        "GPU-3 is held by an attempt",
        "Not seen there: Xid errors.",
        "1.2 cores, 1.0 GiB",
        "1 of other projects",
    ):
        assert said in words


def test_the_cluster_s_list_leads_there_and_says_what_is_wrong(browser: TestClient, api: FakeApi) -> None:
    api.nodes = [
        NODE.model_copy(update={"closed": "draining", "closed_reason": "kernel update", "drain_at": NOW})
    ]
    page = parse(browser.get("/cluster").text)
    assert page.one("a", id="node-node-a").attributes["href"] == "/nodes/node-a"
    row = page.one("div", id="nodes").one("tbody").one("tr").words
    for said in ("draining (kernel update)", "Xid 79: <b>: it gets no work", "GPU-3 is missing"):
        assert said in row


def test_its_buttons_close_and_open_it(browser: TestClient, api: FakeApi) -> None:
    form = {"reason": "kernel update", "at": "2026-12-01T22:00"}
    at = datetime(2026, 12, 1, 22, tzinfo=UTC)
    for what in ("drain", "cordon", "uncordon"):
        answer = browser.post(f"/nodes/node-a/{what}", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, "/nodes/node-a")
    assert api.closings == [
        ("node-a", "drain", NodeDrain(reason="kernel update", at=at)),
        ("node-a", "cordon", NodeDrain(reason="kernel update")),
        ("node-a", "uncordon", None),
    ]
    assert browser.post("/nodes/node-a/destroy", data={}).status_code == 404


@pytest.mark.parametrize(("at", "why"), [("2020-01-01T00:00", "is past"), ("tonight", "is no time")])
def test_what_the_api_refuses_is_shown_on_the_page(browser: TestClient, at: str, why: str) -> None:
    answer = browser.post("/nodes/node-a/drain", data={"at": at})
    assert answer.status_code == 422
    assert why in parse(answer.text).one("main").words


def test_only_administrators_are_offered_buttons(browser: TestClient, api: FakeApi) -> None:
    assert "Drain" in parse(browser.get("/nodes/node-a").text).one("main").words
    api.projects = [project("default", role="member")]
    assert "Drain" not in parse(browser.get("/nodes/node-a").text).one("main").words


def test_another_site_s_form_is_refused(browser: TestClient, api: FakeApi) -> None:
    answer = browser.post("/nodes/node-a/drain", data={}, headers={"Origin": "http://elsewhere"})
    assert (answer.status_code, api.closings) == (403, [])
