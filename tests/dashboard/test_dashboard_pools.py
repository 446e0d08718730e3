"""Pools on the cluster's page: where nodes come from when there is work."""

from starlette.testclient import TestClient

from powermean.contracts.pools import PilotView, PoolView, Shape
from tests.support.fake_api import NOW, FakeApi
from tests.support.html_text import parse

LOCAL = PoolView(
    name="local", kind="local", shape=None, min=0, max=None, error=None, states={}, nodes=1, pilots=()
)


def pool(**changes: object) -> PoolView:
    made = {
        "name": "gpu",
        "kind": "slurm",
        "shape": Shape(gpus=8),
        "min": 0,
        "max": 4,
        "error": None,
        "states": {"pending": 1},
        "nodes": 0,
        "pilots": (),
    }
    return PoolView.model_validate(made | changes)


def test_no_section_without_a_pool(browser: TestClient, api: FakeApi) -> None:
    api.pools = [LOCAL]
    assert "pools-title" not in browser.get("/cluster").text


def test_a_pool_with_what_is_on_its_way_and_what_is_wrong(browser: TestClient, api: FakeApi) -> None:
    times = {"created_at": NOW, "started_at": None, "ended_at": None, "ends_at": None}
    pilot = {"id": "gpu-1", "node": "gpu-1", "state": "pending", "reason": "PENDING, Priority"}
    there = PilotView.model_validate(pilot | times | {"external_id": "17"})
    api.pools = [LOCAL, pool(pilots=(there,), error="squeue: <nobody> answers")]
    page = browser.get("/cluster")
    assert "<nobody>" not in page.text
    local, gpu = [row.words for row in parse(page.text).one("section", id="pools").one("tbody").all("tr")]
    assert "they come by themselves" in local
    assert "squeue: <nobody> answers" in gpu
    assert "gpu-1: PENDING, Priority" in gpu
    assert "0 to 4" in gpu
    assert "gpu-1: PENDING" in browser.get("/cluster/part/pools", headers={"HX-Request": "true"}).text
