"""The charts of p and ESS in a real browser: what they draw, say and open; restarts; other objectives."""

from typing import Any

from tests.support.browser_tabs import Tab, Tabs
from tests.support.real_service import Run, Service


def learn(run: Run, step: int, lowest: float = 0.8) -> None:
    """A step of 4 trajectories and 2 x 2 updates: in the last pass p is 1, 1, `lowest` and undefined."""
    rows = [
        {"step": step, "update": update, "name": name, "value": value}
        for update, p in ((1, 1.0), (2, 1.0), (3, (1 + lowest) / 2))
        for name, value in (("p/mean", p), ("ess/mean", 0.98), ("ess/at_1", 0.96), ("ess/target", 0.98))
    ]
    pooled = {
        "mean": (2 + lowest) / 3,
        "q10": 0.84,
        "min": lowest,
        "defined": 3,
        "below_1": 1,
        "undefined": 1,
    }
    rows += [{"step": step, "name": f"p/last_pass/{name}", "value": value} for name, value in pooled.items()]
    rows.append({"step": step, "name": "reward", "value": 0.5})
    rows += [{"step": step, "update": 3, "name": "clip_fraction/mean", "value": 0.1}]
    run.post("metrics", {"rows": rows})
    saw = [(1.0, 0.0, 0.5), (1.0, 0.0, -0.5), (lowest, 0.36, -0.5), (None, None, 0.0)]
    trajectories = [
        {
            "index": index,
            "group": 0,
            "problem": "a",
            "reward": 0.0,
            "advantage": advantage,
            "length": 3,
            "truncated": False,
            "updates": [{"update": 2, "p": p, "clip_fraction": clipped}],
        }
        for index, (p, clipped, advantage) in enumerate(saw)
    ]
    run.post("trajectories", {"step": step, "rows": trajectories})


def sentence(tab: Tab, chart: str = "p") -> str:
    tab.chart(chart)
    return tab.page.locator(f"#chart-{chart} .sentence").inner_text()


def started(service: Service, **changes: Any) -> Run:
    run = service.running(**changes)
    for step in (1, 2, 3):
        learn(run, step)
    return run


def test_p_over_the_run_is_drawn_told_and_opens_a_steps_trajectories(service: Service, tabs: Tabs) -> None:
    run = started(service)
    tab = tabs.open().open(run)
    cells = tab.plotted("p", "p/mean")
    assert [[step, update] for step, update, *_ in cells] == [[s, u] for s in (1, 2, 3) for u in (1, 2, 3)]
    assert [[step, round(p, 3)] for step, p in tab.plotted("p", "mean")] == [[s, 0.933] for s in (1, 2, 3)]
    dots = tab.wait_for_points("p", "trajectories", 6)
    assert sorted(dots) == sorted([s, p, n] for s in (1, 2, 3) for p, n in ((1, 2), (0.8, 1)))
    told = "p was below 1 for 3 of 9 trajectories that could be learnt from (33 %): 0.8 on average there"
    assert told in sentence(tab)
    assert "25 % of all had no p" in sentence(tab)
    name = tab.page.locator("#chart-p .plot").get_attribute("aria-label")
    assert name
    assert told in name

    tab.page.get_by_label("Exponent p over the run as a table").click()
    assert tab.table("p")[0][:7] == ["3", "0.9333", "0.8400", "0.8000", "1", "3", "1"]
    tab.page.get_by_label("Exponent p over the run as a table").click()

    learn(run, 4, lowest=0.5)  # a new step adds a column at the right
    tab.until(lambda: len(tab.plotted("p", "mean")) == 4, "the new step")
    assert tab.plotted("p", "p/mean")[:9] == cells
    tab.until(lambda: "lowest 0.5 in step 4" in sentence(tab), "the new sentence")

    box = tab.page.locator("#chart-p .plot").bounding_box()
    assert box
    tab.page.mouse.click(box["x"] + box["width"] - 60, box["y"] + 60)  # a cell of the last step
    tab.page.wait_for_url(f"**{run.path}/steps/4?sort=p")
    assert tab.complaints == []


def test_why_this_p_and_what_it_saved(service: Service, tabs: Tabs) -> None:
    tab = tabs.open().open(started(service))
    tab.until(lambda: tab.plotted("why", "expected"), "the line")
    f, p = tab.plotted("why", "expected")[30]
    assert round(p, 6) == round((1 - f) ** 0.5, 6)
    tab.page.get_by_label("Why this p: clip fraction as a table").click()
    assert tab.table("why") == [
        ["0 %", "1", "< 0", "3", "1, 2, 3"],
        ["0 %", "1", "> 0", "3", "1, 2, 3"],
        ["36 %", "0.8000", "< 0", "3", "1, 2, 3"],
    ]
    assert "kept it at 50 % of what GRPO's weights" in sentence(tab, "ess")
    assert tab.plotted("ess", "ess/target") == []
    legend = tab.page.locator("#chart-clip .legend")
    tab.chart("clip")
    assert "step 3: 3 of 4 trajectories" in legend.inner_text()
    assert tab.complaints == []


def test_a_restart_cuts_the_columns_from_its_step_on(service: Service, tabs: Tabs) -> None:
    run = started(service)
    run.checkpoint(1)
    tab = tabs.open().open(run)
    tab.wait_for_points("p", "trajectories", 6)
    run.restart()
    tab.until(lambda: len(tab.plotted("p", "mean")) == 1, "the rewind")
    learn(run, 2, lowest=0.6)
    tab.until(lambda: [2, 0.6, 1] in tab.plotted("p", "trajectories"), "the new trajectories of step 2")
    assert "lowest 0.6 in step 2" in sentence(tab)


def test_a_fixed_p_is_a_sentence(service: Service, tabs: Tabs) -> None:
    tab = tabs.open().open(started(service, algorithm={"name": "gmpo"}))
    assert sentence(tab) == "p = 0 for every trajectory: gmpo fixes it."
    assert not tab.page.locator("#chart-p .plot").is_visible()
    assert tab.page.locator("#chart-why").count() == 0
    assert tab.complaints == []


def test_a_chart_without_circles_says_why(service: Service, tabs: Tabs) -> None:
    run = service.running()
    run.step(1, 2)
    tab = tabs.open().open(run)
    tab.chart("why")
    tab.shows("#chart-why .nothing", "No trajectories are recorded for the steps in view.")
    equal = {"index": 0, "group": 0, "problem": "a", "reward": 0.0, "advantage": 0.0, "length": 3}
    run.post("trajectories", {"step": 2, "rows": [equal | {"truncated": False}]})
    tab.open(run).chart("why")
    tab.shows("#chart-why .nothing", "No trajectory of the step in view has a p: in every group all rewards")
    learn(run, 3)
    tab.open(run).chart("why")
    tab.until(lambda: tab.page.locator("#chart-why .nothing").is_hidden(), "circles")
