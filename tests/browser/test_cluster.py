"""The cluster page in a real browser over the stand-in API: engines in every state, renewed by itself."""

from powermean.contracts.api import NodeView
from powermean.contracts.attempts import GpuInfo
from powermean.contracts.engines import EngineService
from tests.browser.test_tokens import PHONE, StandIn, signed_in, stand_in, token_tabs
from tests.dashboard.test_dashboard_cluster import engine
from tests.support.browser_tabs import Tabs
from tests.support.fake_api import NOW

__all__ = ["stand_in", "token_tabs"]  # fixtures

ERROR = {"code": "engine_memory", "message": "the engine needs 21.0 GiB for weights and cache, 9.5 are free"}


def node() -> NodeView:
    return NodeView(
        id="node-a",
        hostname="a.example",
        gpus=(GpuInfo(uuid="GPU-1", name="H100", memory_mb=81_559),),
        cpu_slots=2,
        engines=("transformers", "vllm"),
        version="0.1.0",
        alive=True,
        seen_at=NOW,
        attempts=("job-a.2",),
    )


def in_every_state() -> list[EngineService]:
    return [
        engine(),
        engine(id="engine-2", state="starting", jobs=()),
        engine(id="engine-3", state="failed", error=ERROR, report=None, jobs=(), seen_at=None),
        engine(id="engine-4", state="waiting", why="waiting for a node with vLLM", node=None, report=None),
        engine(id="engine-5", state="stopping"),
    ]


def test_engines_in_every_state_are_quiet_and_fit_a_phone(stand_in: StandIn, token_tabs: Tabs) -> None:
    stand_in.api.nodes, stand_in.api.engines = [node()], in_every_state()
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark"} | PHONE):
        tab = signed_in(token_tabs, stand_in, **options)
        tab.page.goto("/cluster#engine-3")
        assert tab.page.locator("#engines tbody tr").count() == 5
        assert tab.page.locator("#engine-3").get_by_text("engine_memory").is_visible()
        assert tab.too_wide() == {}
        assert tab.complaints == []


def test_an_engine_that_becomes_ready_is_seen_without_a_reload(stand_in: StandIn, token_tabs: Tabs) -> None:
    stand_in.api.nodes, stand_in.api.engines = [node()], [engine(state="starting", report=None, jobs=())]
    tab = signed_in(token_tabs, stand_in, color_scheme="light")
    tab.page.goto("/cluster")
    state = tab.page.locator("#engine-1 .state")
    assert state.inner_text() == "starting"
    stand_in.api.engines = [engine()]
    tab.until(lambda: state.inner_text() == "ready", "the engine's state")
    tab.page.locator("#engine-job-a").click()
    tab.page.wait_for_url("**/jobs/job-a")
