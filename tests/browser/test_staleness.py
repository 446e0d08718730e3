"""p and ESS by staleness in a real browser over the stand-in API: drawn, renewed by steps, on a phone."""

from typing import Any

from tests.browser.test_tokens import PHONE, StandIn, signed_in, stand_in, token_tabs
from tests.dashboard.test_dashboard_staleness import stale_job
from tests.support.browser_tabs import Tab, Tabs
from tests.support.sample_staleness import sample_staleness

__all__ = ["stand_in", "token_tabs"]  # fixtures

DRAWN = """async () => {
    const echarts = await import(document.getElementById("staleness-script").dataset.echarts);
    const box = document.querySelector("#staleness-plot .plot");
    const plot = box && echarts.getInstanceByDom(box);
    return plot ? Object.fromEntries(plot.getOption().series.map((one) => [one.id, one.data])) : {};
}"""


def drawn(tab: Tab) -> Any:
    return tab.page.evaluate(DRAWN) if tab.page.locator("#staleness-plot").count() else {}


def test_the_panel_appears_with_the_first_stale_trajectories_and_follows(
    stand_in: StandIn, token_tabs: Tabs
) -> None:
    job = stale_job(stand_in.api)
    job.staleness = sample_staleness(0)
    tab = signed_in(token_tabs, stand_in, color_scheme="light")
    tab.page.goto("/jobs/job-a/charts")
    tab.status("Live")
    assert not tab.page.locator("#staleness").is_visible()
    job.staleness = sample_staleness(0, 1)
    job.event("trajectories", {"step": 3, "count": 64})
    tab.until(lambda: drawn(tab).get("N(p)") == [0.98, 0.96], "the panel")
    job.staleness = sample_staleness()
    job.event("trajectories", {"step": 4, "count": 64})
    tab.until(lambda: len(drawn(tab).get("p, mean", ())) == 3, "the panel anew")
    assert tab.page.locator(".by-staleness tbody tr").count() == 3
    assert tab.complaints == []


def test_it_fits_a_phone_in_the_dark(stand_in: StandIn, token_tabs: Tabs) -> None:
    stale_job(stand_in.api)
    tab = signed_in(token_tabs, stand_in, color_scheme="dark", **PHONE)
    tab.page.goto("/jobs/job-a/charts")
    tab.until(lambda: drawn(tab), "the plot")
    assert tab.too_wide() == {}
    assert tab.complaints == []
