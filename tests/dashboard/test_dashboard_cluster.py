from starlette.testclient import TestClient

from powermean.contracts.api import NodeView
from powermean.contracts.attempts import AllocationView, GpuInfo, NameRival
from powermean.contracts.engines import EngineService
from tests.support.fake_api import NOW, FakeApi
from tests.support.html_text import parse


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
    rows = [row.words for row in parse(page.text).one("div", id="nodes").one("tbody").all("tr")]
    assert "<i>a</i>" not in page.text
    assert "alive" in rows[0]
    assert "H100, 79.6 GiB" in rows[0]
    assert "offline" in rows[1]
    assert parse(page.text).one("a", id="node-job-a.2").attributes["href"] == "/jobs/job-a"


def test_a_node_says_who_else_tried_to_use_its_name(browser: TestClient, api: FakeApi) -> None:
    node = NodeView(
        id="node-a",
        hostname="a",
        gpus=(),
        cpu_slots=2,
        engines=(),
        version="0.1.0",
        alive=True,
        seen_at=NOW,
        attempts=(),
        rival=NameRival(hostname="<b>", at=NOW),
    )
    api.nodes = [node, node.model_copy(update={"id": "node-b", "rival": None})]
    rows = [
        row.words for row in parse(browser.get("/cluster").text).one("div", id="nodes").one("tbody").all("tr")
    ]
    assert "Another worker, on host <b>, tried to use this name" in rows[0]
    assert "Another worker" not in rows[1]


def test_no_node_yet(browser: TestClient) -> None:
    assert "No node has reported yet." in browser.get("/cluster").text
    assert "<html" not in browser.get("/cluster", headers={"HX-Request": "true"}).text


def engine(**changes: object) -> EngineService:
    made = {
        "id": "engine-1",
        "spec": {"name": "smol", "model": {"name": "tiny/model"}, "max_adapters": 4, "max_lora_rank": 8},
        "state": "ready",
        "node": "node-a",
        "generation": 1,
        "report": {
            "id": "engine-1",
            "generation": 1,
            "state": "ready",
            "adapters": {"slots": 4, "taken": 2, "max_rank": 8},
            "requests": 7,
            "restarts": 1,
        },
        "jobs": ("job-a", "job-b"),
        "created_at": NOW,
        "seen_at": NOW,
    }
    return EngineService.model_validate(made | changes)


def test_engines_with_state_model_load_and_jobs(browser: TestClient, api: FakeApi) -> None:
    error = {"code": "vllm_missing", "message": "<b>not</b> installed"}
    api.engines = [
        engine(),
        engine(id="engine-2", state="failed", error=error, report=None, jobs=(), seen_at=None),
        engine(id="engine-3", state="waiting", why="waiting for a node", node=None, report=None, jobs=()),
    ]
    page = browser.get("/cluster")
    section = parse(page.text).one("section", id="engines")
    ready, failed, waiting = (row.words for row in section.one("tbody").all("tr"))
    assert "<b>not</b>" not in page.text
    for words in ("smol", "ready", "1 restart", "tiny/model", "rank up to 8", "node-a", "2 of 4", "7"):
        assert words in ready
    assert section.one("a", id="engine-job-a").attributes["href"] == "/jobs/job-a"
    assert "vllm_missing: <b>not</b> installed" in failed
    assert "waiting for a node" in waiting
    assert "powermean engine add" in (api.engines.clear() or browser.get("/cluster").text)


def test_a_job_says_on_which_engine_it_samples(browser: TestClient, api: FakeApi) -> None:
    fake = api.add_job("job-a")
    fake.rewind(0)
    (first,) = fake.job.attempts[-1:]
    slot = AllocationView(role="rollout", node_id="node-a", engine_id="engine-1")
    shared = first.model_copy(update={"allocations": (*first.allocations, slot)})
    fake.update(attempts=(*fake.job.attempts[:-1], shared))
    page = parse(browser.get("/jobs/job-a").text)
    assert page.one("a", id="engine-link").attributes["href"] == "/cluster#engine-1"
    assert "shared engine-1" in page.one("section", id="outcome").words
