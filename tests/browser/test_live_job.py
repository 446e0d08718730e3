"""A job's page in a real browser: history at once, then live; nothing lost, nothing twice."""

from statistics import fmean

import pytest

from dashboard.formatting import number
from tests.support.browser_tabs import Tab, Tabs
from tests.support.real_service import UPDATES, Run, Service


def expected(run: Run, name: str, **query: int) -> list[list[float]]:
    """A metric as it should be plotted: one value a step, the mean of the last pass's two updates."""
    steps: dict[int, list[float]] = {}
    for step, update, value in run.history(name, **query):
        if update < 0 or update >= UPDATES // 2:
            steps.setdefault(step, []).append(value)
    return [[step, pytest.approx(fmean(values))] for step, values in steps.items()]


def assert_plots_equal_history(tab: Tab, run: Run) -> None:
    for chart, name in (
        ("reward", "reward"),
        ("reward", "eval/reward"),
        ("clip", "clip_fraction/mean"),
    ):
        assert tab.plotted(chart, name) == expected(run, name), name


def test_history_at_once_then_live(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(0, 1, 2, 3)
    tab = tabs.open().open(run)
    overview = tabs.open().open(run, part="")
    assert_plots_equal_history(tab, run)
    tab.status("Live")
    overview.shows("#health", "Too early to say how it goes: 3 of the 5 steps")

    run.step(4, 5)
    tab.wait_for_points("clip", "clip_fraction/mean", 6)
    assert_plots_equal_history(tab, run)
    tab.shows("#job-header .progress", "5/20")
    tab.page.get_by_text("All numbers of the last step").click()
    tab.shows("#latest caption", "step 5")
    overview.wait_for_points("reward", "reward", 6)
    overview.shows("#health", "Healthy: 6.2 % of tokens clipped")
    assert number(run.history("reward")[-1][2]) in tab.page.locator("#chart-reward .legend").inner_text()

    run.finish(5)
    tab.status("Ended")
    tab.page.wait_for_selector("#job-header .state-finished")
    assert tab.complaints == overview.complaints == []


def test_a_server_that_comes_back_leaves_no_gap_and_no_double(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(1, 2)
    tab = tabs.open().open(run)
    tab.status("Live")
    run.step(3)
    tab.wait_for_points("reward", "reward", 3)

    service.stop()
    tab.status("Reconnecting…")
    service.start()
    run.step(4, 5, 6)
    tab.status("Live")
    tab.wait_for_points("reward", "reward", 6)
    run.step(7)
    tab.wait_for_points("reward", "reward", 7)
    assert_plots_equal_history(tab, run)


def test_streams_that_the_server_ends_are_taken_up_again(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(1)
    tab = tabs.open().open(run)
    tab.status("Live")
    for step in (2, 3, 4):
        service.end_streams()
        run.step(step)
        tab.wait_for_points("reward", "reward", step)
    assert_plots_equal_history(tab, run)


def test_a_hidden_page_gives_its_connection_back(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(1)
    tab = tabs.open().open(run)
    tab.status("Live")
    show = """(hidden) => {
        Object.defineProperty(document, "hidden", { get: () => hidden, configurable: true });
        document.dispatchEvent(new Event("visibilitychange"));
    }"""
    tab.page.evaluate(show, True)
    tab.status("Paused while hidden")
    tab.until(lambda: service.app.state.events.clients == 0, "the stream's end")
    run.step(2, 3)
    tab.page.evaluate(show, False)
    tab.wait_for_points("reward", "reward", 3)
    assert_plots_equal_history(tab, run)


def test_a_new_attempt_takes_the_lost_steps_back(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(1, 2, 3, 4)
    run.checkpoint(4)
    run.step(5, 6)
    tab = tabs.open().open(run)
    tab.status("Live")
    assert len(tab.plotted("reward", "reward")) == 6

    run.restart()
    tab.until(lambda: len(tab.plotted("reward", "reward")) == 4, "the rewind")
    run.step(5, shift=0.1)
    tab.wait_for_points("clip", "clip_fraction/mean", 5)
    assert_plots_equal_history(tab, run)
    overview = tabs.open().open(run, part="")
    overview.shows("#facts", "1 restart")
    overview.shows("#outcome", "trainer_killed")


def test_a_long_run_is_thinned_and_still_rewinds_exactly(service: Service, tabs: Tabs) -> None:
    run = service.running(training={"steps": 9000})
    rows = [{"step": step, "name": "reward", "value": (step % 100) / 100} for step in range(1, 4001)]
    run.post("metrics", {"rows": rows})
    run.checkpoint(3000)
    tab = tabs.open().open(run)
    tab.status("Live")
    thinned = expected(run, "reward", max_points=1600)
    assert tab.plotted("reward", "reward") == thinned
    assert 1000 < len(thinned) <= 1600

    run.step(4001)
    tab.wait_for_points("reward", "reward", len(thinned) + 1)
    run.restart()
    after = expected(run, "reward", max_points=1600)
    assert after[-1][0] == 3000
    tab.until(lambda: tab.plotted("reward", "reward") == after, "the history of what is left")
    run.step(3001)
    tab.until(lambda: tab.plotted("reward", "reward")[-1][0] == 3001, "the next step")
    assert tab.complaints == []


def test_what_went_wrong_is_counted(service: Service, tabs: Tabs) -> None:
    run = service.running()
    for step, failures in ((1, 3), (2, 0)):
        run.post("metrics", {"rows": [{"step": step, "name": "grader/failures", "value": failures}]})
    tab = tabs.open().open(run, part="system")
    assert ["grader failures", "0", "2", "3 in step 1"] in tab.table("counters")
    assert ["updates skipped", "–", "–", "–"] in tab.table("counters")


def test_the_table_holds_the_plotted_numbers(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(*range(6))
    tab = tabs.open().open(run)
    plotted = dict(map(tuple, tab.plotted("clip", "clip_fraction/mean")))
    tab.page.get_by_label("Clip fraction as a table", exact=True).click()
    rows = {step: cells for step, *cells in tab.table("clip")}
    assert rows == {f"{step}": [number(plotted[step]), "", "", ""] for step in range(6)}

    run.step(6)  # an open table follows, too
    tab.until(lambda: len(tab.table("clip")) == 7, "the table's new row")
    tab.page.get_by_role("button", name="Tables", exact=True).click()
    assert [row[0] for row in tab.table("reward")] == ["6", "5", "4", "3", "2", "1", "0"]
    system = tabs.open()
    system.page.goto(f"{run.path}/system?tables=1")
    system.page.wait_for_selector("#chart-time .data tbody tr")
    assert system.table("time")[0][1:3] == ["5", ""]


def test_zoom_takes_whole_steps_and_is_part_of_the_address(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(*range(11))
    tab = tabs.open().open(run)

    def typed(first: str, last: str) -> None:
        tab.page.get_by_label("Steps", exact=True).fill(first)
        tab.page.get_by_label("to", exact=True).fill(last)
        tab.page.get_by_label("to", exact=True).press("Enter")

    def steps(chart: str = "reward", series: str = "reward") -> list[float]:
        return [x for x, _ in tab.plotted(chart, series)]

    typed("3", "6")
    tab.until(lambda: steps() == [3, 4, 5, 6], "the typed zoom")
    assert steps("clip", "clip_fraction/mean") == [3, 4, 5, 6]
    assert max(steps("clip", "clip_fraction/mean updates")) > 6  # all updates of the last step
    typed("4", "4")
    tab.until(lambda: steps() == [4], "a single step")
    tab.page.get_by_role("button", name="Smooth").click()
    assert tab.page.url.endswith("?from=4&to=4&smooth=1")

    tab.page.reload()
    tab.until(lambda: steps() == [4], "the same after loading the address")
    assert tab.page.get_by_label("to", exact=True).input_value() == "4"
    assert tab.page.get_by_role("button", name="Smooth").get_attribute("aria-pressed") == "true"
    tab.page.get_by_role("button", name="Whole run").click()
    tab.wait_for_points("reward", "reward", 11)
    assert tab.page.url.endswith("?smooth=1")

    tab.chart("clip")
    box = tab.page.locator("#chart-clip .plot").bounding_box()
    assert box
    tab.page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + 80)
    tab.page.mouse.down()
    tab.page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 80, steps=4)
    tab.page.mouse.up()
    tab.until(lambda: len(steps()) < 5, "the drawn zoom")
    assert tab.complaints == []


def test_a_part_of_a_long_run_shows_its_steps(service: Service, tabs: Tabs) -> None:
    run = service.running(training={"steps": 9000})
    rows = [{"step": step, "name": "reward", "value": (step % 100) / 100} for step in range(1, 8001)]
    for start in range(0, 8000, 2000):
        run.post("metrics", {"rows": rows[start : start + 2000]})
    tab = tabs.open()
    tab.page.goto(f"{run.path}?from=4001&to=4004")
    tab.until(
        lambda: [x for x, _ in tab.plotted("reward", "reward")] == [4001, 4002, 4003, 4004], "the steps"
    )
    tab.page.get_by_role("button", name="Whole run").click()
    tab.until(lambda: len(tab.plotted("reward", "reward")) > 1000, "the whole run")
    assert tab.complaints == []


def test_the_address_holds_what_is_shown(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(*range(11))
    tab = tabs.open().open(run)
    tab.page.get_by_label("Steps", exact=True).fill("4")
    tab.page.get_by_label("to", exact=True).fill("6")
    tab.page.get_by_label("to", exact=True).press("Enter")
    tab.page.get_by_role("button", name="Smooth").click()
    assert tab.page.url.endswith("/charts?from=4&to=6&smooth=1")

    for _ in range(2):  # after a reload, and on the next tab
        tab.page.reload()
        tab.page.wait_for_selector("#grid[data-ready]")
        assert [x for x, _ in tab.plotted("reward", "reward")] == [4, 5, 6]
        assert tab.page.get_by_role("button", name="Smooth").get_attribute("aria-pressed") == "true"
        tab.page.get_by_role("button", name="Tables", exact=True).click()
        tab.page.get_by_role("button", name="Tables", exact=True).click()
        tab.page.get_by_role("link", name="Overview").click()
        assert tab.page.url.endswith(f"{run.path}?from=4&to=6&smooth=1")
    tab.page.get_by_role("button", name="Whole run").click()
    assert tab.page.url.endswith(f"{run.path}?smooth=1")


def test_cards_come_with_their_data_and_the_page_fits(service: Service, tabs: Tabs) -> None:
    run = service.running()
    tab = tabs.open(viewport={"width": 1280, "height": 800}).open(run, part="")
    tab.shows("#no-numbers", "No numbers yet.")
    assert tab.page.locator(".chart:visible").count() == 0
    run.step(1)
    tab.page.wait_for_selector("#chart-reward:visible")
    run.step(*range(2, 20))
    for part in ("", "charts", "system", "spec", "log"):
        tab.page.goto(f"{run.path}/{part}".rstrip("/"))
        tab.page.wait_for_timeout(300)
        empty = tab.page.locator(".chart:not(#chart-why):visible .nothing:visible")  # no trajectory here
        tab.until(lambda empty=empty: empty.count() == 0, f"the numbers of every card of {part}")
        tab.until(  # cards without data fold away when the numbers have come
            lambda: tab.page.evaluate("() => document.scrollingElement.scrollHeight") <= 1600,
            f"{part or 'the overview'} fits two screens; it was nine",
        )
    assert tab.complaints == []


def test_cancel_asks_first(service: Service, tabs: Tabs) -> None:
    run = service.running()
    tab = tabs.open().open(run, part="")
    tab.page.get_by_role("link", name="Cancel job").click()
    tab.page.get_by_role("button", name="Keep it running").click()
    assert run.job()["cancel_requested"] is False
    tab.page.get_by_role("link", name="Cancel job").click()
    tab.page.get_by_role("button", name="Cancel the job").click()
    tab.page.wait_for_selector("#job-header .state:has-text('cancelling')")
    assert run.job()["cancel_requested"] is True
    run.post("finish", {"outcome": "cancelled"})
    tab.page.wait_for_selector("#job-header .state-cancelled")
    assert tab.complaints == []
