"""From the form to a replay's plot, in a real browser over the stand-in API."""

from powermean.contracts.replays import ReplayState
from tests.browser.test_tokens import PHONE, StandIn, signed_in, stand_in, token_tabs
from tests.support.browser_tabs import Tabs
from tests.support.sample_replays import replay_result, sample_replay

__all__ = ["stand_in", "token_tabs"]  # fixtures


def test_the_page_waits_and_then_draws(stand_in: StandIn, token_tabs: Tabs) -> None:
    stand_in.api.add_job()
    stand_in.api.replays["replay-1"] = sample_replay(ReplayState.WAITING)
    tab = signed_in(token_tabs, stand_in, color_scheme="light")
    tab.page.goto("/jobs/job-a/steps/5/replays")
    tab.page.select_option("select[name=algorithm]", "grpo")
    tab.page.fill("input[name=set]", "clip=0.2")
    tab.page.click("form.replay-form button")
    tab.page.wait_for_url("**/replays/replay-1")
    assert stand_in.api.asked == [{"step": 5, "algorithm": "grpo", "set": {"clip": 0.2}}]
    stand_in.api.results["replay-1"] = replay_result()
    stand_in.api.replays["replay-1"] = sample_replay()
    tab.page.wait_for_selector("#replay-plot canvas", timeout=15_000)  # the page refreshed itself
    assert tab.page.locator(".replay-trajectories tbody tr").count() == 2
    assert tab.complaints == []


def test_it_fits_a_phone_in_the_dark(stand_in: StandIn, token_tabs: Tabs) -> None:
    stand_in.api.add_job()
    stand_in.api.replays["replay-1"] = sample_replay()
    stand_in.api.results["replay-1"] = replay_result()
    tab = signed_in(token_tabs, stand_in, color_scheme="dark", **PHONE)
    for path in ("/jobs/job-a/replays/replay-1", "/jobs/job-a/steps/5/replays"):
        tab.page.goto(path)
        assert tab.too_wide() == {}, path
    assert tab.complaints == []
