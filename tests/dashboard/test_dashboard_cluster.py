from starlette.testclient import TestClient

from powermean.contracts.api import NodeView
from powermean.contracts.attempts import GpuInfo
from tests.dashboard.fake_api import NOW, FakeApi
from tests.dashboard.html_text import parse


def test_nodes_with_what_they_have_and_hold(browser: TestClient, api: FakeApi) -> None:
    gpu = GpuInfo(uuid="GPU-1", name="H100", memory_mb=81_559)
    node = NodeView(
        id="node-a",
        hostname="<i>a</i>",
        gpus=(gpu,),
        cpu_slots=2,
        engines=("transformers",),
        version="0.1.0",
        alive=True,
        seen_at=NOW,
        attempts=("job-a.2",),
    )
    api.nodes = [node, node.model_copy(update={"id": "node-b", "alive": False, "attempts": ()})]
    page = browser.get("/cluster")
    rows = [row.words for row in parse(page.text).one("tbody").all("tr")]
    assert "<i>a</i>" not in page.text
    assert "alive" in rows[0]
    assert "H100, 81.6 GB" in rows[0]
    assert "lost" in rows[1]
    assert parse(page.text).one("a", id="node-job-a.2").attributes["href"] == "/jobs/job-a"


def test_no_node_yet(browser: TestClient) -> None:
    assert "No node has reported yet." in browser.get("/cluster").text
    assert "<html" not in browser.get("/cluster", headers={"HX-Request": "true"}).text
