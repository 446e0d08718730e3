"""The cluster page in a real browser, over a busy cluster: drawn, live, quiet, and for everybody."""

import pytest
from sqlalchemy import update

from server.db.models import Allocation, Job
from server.db.session import database_now
from tests.browser.test_accessibility import LOOKS, findings
from tests.browser.test_pages import PHONE
from tests.support.browser_tabs import Tab, Tabs
from tests.support.real_service import Service
from tests.support.sample_cluster import busy

PAGES = ("/cluster", "/cluster?window=24h", "/usage?by=job", "/projects/vision/quota", "/jobs/job-0033")


@pytest.fixture
def cluster(service: Service) -> Service:
    with service.app.state.database.write() as session:
        busy(session)
    return service


def drawn(tab: Tab, path: str = "/cluster") -> Tab:
    tab.page.goto(path)
    tab.page.wait_for_selector("#lanes[data-drawn]", state="attached")
    return tab


def bars(tab: Tab) -> int:
    return int(
        tab.page.evaluate(
            """async () => {
                const echarts = await import(document.getElementById("cluster-script").dataset.echarts);
                const plot = echarts.getInstanceByDom(document.getElementById("lanes"));
                return plot.getOption().series.find((one) => one.id === "bars").data.length;
            }"""
        )
    )


def test_every_page_is_quiet_and_fits_a_phone(cluster: Service, tabs: Tabs) -> None:
    for options in ({"color_scheme": "light"}, {"color_scheme": "dark"} | PHONE):
        tab = tabs.open(**options)
        for path in PAGES:
            answer = tab.page.goto(path)
            assert answer
            assert answer.status == 200, path
            tab.page.wait_for_timeout(300)
            assert tab.too_wide() == {}, path
        assert tab.complaints == []


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark phone"])
def test_axe_finds_nothing(cluster: Service, tabs: Tabs, look: dict[str, object]) -> None:
    tab = tabs.open(bypass_csp=True, **look)
    assert [found for path in PAGES for found in findings(tab, path)] == []


def test_the_window_is_chosen_and_a_bar_leads_to_its_job(cluster: Service, tabs: Tabs) -> None:
    tab = drawn(tabs.open(color_scheme="light"))
    hour = bars(tab)
    tab.page.get_by_role("link", name="24 h").click()
    tab.page.wait_for_url("**/cluster?window=24h")
    tab.page.wait_for_selector("#lanes[data-drawn]", state="attached")
    assert bars(tab) > hour > 20
    tab.page.wait_for_load_state("networkidle")  # nothing moves any more
    place = tab.page.locator("#lanes canvas").bounding_box()
    assert place is not None
    first_gpu = place["y"] + 6 + 4 * 21 + 8  # of gpu-1, below four CPU slots
    tab.page.mouse.click(place["x"] + place["width"] - 95, first_gpu)  # left of its utilisation
    tab.page.wait_for_url("**/jobs/job-0001")


def test_what_changes_is_seen_without_a_reload_and_an_open_table_stays_open(
    cluster: Service, tabs: Tabs
) -> None:
    tab = drawn(tabs.open(color_scheme="light"))
    tab.page.get_by_text("All places as a table").click()
    row = tab.page.locator("#lanes-table tr", has_text="gpu-2 GPU 0")
    assert "language-9" in row.inner_text()
    with cluster.app.state.database.write() as session:
        now = database_now(session)
        held = update(Allocation).where(Allocation.attempt_id == "job-0009.1").values(released_at=now)
        session.execute(held)
        session.execute(update(Job).where(Job.id == "job-0009").values(state="finished"))
    tab.until(lambda: "language-9" not in row.inner_text(), "the place to be free")
    assert tab.page.locator("#lanes-table").get_attribute("open") is not None


def test_the_reason_goes_away_when_the_job_starts(cluster: Service, tabs: Tabs) -> None:
    tab = tabs.open(color_scheme="light")
    tab.page.goto("/jobs/job-0031")
    tab.shows("#waiting", "in the queue")
    with cluster.app.state.database.write() as session:
        session.execute(update(Job).where(Job.id == "job-0031").values(state="cancelled"))
    tab.page.locator("#waiting").wait_for(state="hidden")
    assert tab.complaints == []


def test_strips_tile_the_part_of_a_bar_that_they_know(tabs: Tabs) -> None:
    """Whatever the phases: none overlaps the next, and none leaves its bar."""
    tab = tabs.stranger()
    tab.page.goto("/login")
    found = tab.page.evaluate(
        """async () => {
            const { stripsOf } = await import("/static/js/lanes.js");
            const at = (s) => new Date(Date.UTC(2026, 0, 1) + 1000 * s).toISOString();
            const spans = [
                { start: at(10), end: at(50), attempt: "a" },
                { start: at(60), end: null, attempt: "b" },
                { start: at(0), end: at(9), attempt: null },
            ];
            const phases = [[0, "preparing"], [20, "sampling"], [49, "updating"], [70, "saving"]];
            const attempts = { a: { phases }, b: { phases: [[65, "sampling"]] } };
            const data = { since: at(0), until: at(100), lanes: [{ spans }], attempts };
            return stripsOf(data).map(({ from, to, activity }) => [(from - Date.UTC(2026, 0, 1)) / 1000,
                (to - Date.UTC(2026, 0, 1)) / 1000, activity]);
        }"""
    )
    assert found == [
        [10, 20, "preparing"], [20, 49, "sampling"], [49, 50, "updating"], [65, 100, "sampling"]
    ]  # fmt: skip
