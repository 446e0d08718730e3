"""axe finds nothing on any page, light or dark, wide or narrow: WCAG 2.2 AA and the usual practice."""

import json
from pathlib import Path

import pytest

from dashboard import assets
from tests.browser.test_pages import PHONE, record_trajectories
from tests.browser.test_tokens import STEP, StandIn, signed_in, stand_in, token_tabs
from tests.dashboard.test_dashboard_trajectory import record, with_tokens
from tests.support.browser_tabs import Tab, Tabs
from tests.support.real_service import Service
from tests.support.sample_replays import replay_result, sample_replay

__all__ = ["stand_in", "token_tabs"]  # fixtures

AXE = Path(assets.__file__).parent / "node_modules/axe-core/axe.min.js"
RULES = "{runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'wcag22aa', 'best-practice']}"
pytestmark = pytest.mark.skipif(not AXE.is_file(), reason=f"axe-core is not installed: run {assets.INSTALL}")


def findings(tab: Tab, path: str) -> list[str]:
    """The rules that the page breaks, with the first place of each."""
    tab.page.goto(path)
    assert tab.page.url.endswith(path)
    tab.page.wait_for_timeout(300)  # scripts have drawn what they draw
    tab.page.evaluate(AXE.read_text())
    found = tab.page.evaluate(
        f"async () => (await axe.run({RULES})).violations.map((one) => [one.id, one.nodes[0].target])"
    )
    return [f"{path}: {json.dumps(one)}" for one in found]


LOOKS = ({"color_scheme": "light"}, {"color_scheme": "dark"} | PHONE)


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark phone"])
def test_pages_of_a_service(service: Service, tabs: Tabs, look: dict[str, object]) -> None:
    run = service.running()
    run.step(*range(5))
    record_trajectories(service, run, 4)
    run.post("logs", {"offset": 0, "text": "step 1\n"})
    failed = service.running(max_restarts=0)
    error = {"code": "out_of_memory", "message": "No memory.", "path": "training.steps", "remedy": "Less."}
    failed.post("finish", {"outcome": "failed", "error": error})
    tab = tabs.open(bypass_csp=True, **look)
    paths = ["/", "/new", "/cluster", failed.path, run.path]
    paths += [f"{run.path}/{part}" for part in ("charts", "system", "spec", "log", "steps/4", "cancel")]
    assert [found for path in paths for found in findings(tab, path)] == []


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark phone"])
def test_pages_of_tokens_and_replays(stand_in: StandIn, token_tabs: Tabs, look: dict[str, object]) -> None:
    with_tokens(stand_in.api, record())
    stand_in.api.replays["replay-1"] = sample_replay()
    stand_in.api.results["replay-1"] = replay_result()
    tab = signed_in(token_tabs, stand_in, bypass_csp=True, **look)
    paths = [
        STEP,
        f"{STEP}/trajectories/1",
        f"{STEP}/groups/0",
        f"{STEP}/replays",
        "/jobs/job-a/replays/replay-1",
    ]
    assert [found for path in paths for found in findings(tab, path)] == []
