"""The scripts' own laws, run where they run: in the browser."""

import random
from typing import Any

import pytest

from dashboard import formatting
from tests.support.browser_tabs import Tab, Tabs


@pytest.fixture
def tab(tabs: Tabs) -> Tab:
    opened = tabs.stranger()
    opened.page.goto("/login")
    return opened


def test_the_store_keeps_each_key_once_in_order_whatever_comes_when(tab: Tab) -> None:
    chance = random.Random(7)
    log: list[dict[str, Any]] = []
    expected: dict[tuple[int, int], float] = {}
    for _ in range(400):
        if chance.random() < 0.03:
            step = chance.randrange(30)
            log.append({"rewind": step})
            expected = {key: value for key, value in expected.items() if key[0] < step}
        else:
            key = (chance.randrange(30), chance.randrange(-1, 4))
            expected[key] = chance.random()
            log.append({"row": {"name": "m", "step": key[0], "update": key[1], "value": expected[key]}})
    run = """async (log) => {
        const { SeriesStore } = await import("/static/js/store.js");
        const store = new SeriesStore();
        for (const entry of log) "row" in entry ? store.addRows([entry.row]) : store.rewind(entry.rewind);
        return store.points("m").map((point) => [point.step, point.update, point.value]);
    }"""
    assert tab.page.evaluate(run, log) == [[*key, expected[key]] for key in sorted(expected)]


def test_events_are_told_at_once_and_again_when_their_period_ends(tab: Tab) -> None:
    """The last one counts, also for who did not listen when it came."""
    run = """async () => {
        const { paced } = await import("/static/js/pace.js");
        const told = [];
        const tell = paced((name) => told.push(name), () => 200);
        const rest = (ms) => new Promise((done) => setTimeout(done, ms));
        tell("once");
        for (let count = 0; count < 20; count++) tell("many");
        const atOnce = [...told];
        await rest(700);
        const inAll = [...told];
        tell("once");
        return [atOnce, inAll.sort(), told.at(-1)];
    }"""
    at_once, in_all, last = tab.page.evaluate(run)
    assert at_once == ["once", "many"]
    assert in_all == ["many", "many", "once", "once"]
    assert last == "once"


def test_a_stream_looks_at_once_when_the_page_is_back(tab: Tab) -> None:
    run = """async () => {
        const made = [];
        window.EventSource = class {
            static OPEN = 1;
            constructor() { made.push(this); }
            addEventListener() {}
            close() {}
        };
        const { JobStream } = await import("/static/js/stream.js");
        new JobStream("job-a", 0, { status() {}, event() {} }).open();
        const opened = (name) => {
            dispatchEvent(new Event(name));
            return made.length;
        };
        made[0].onerror();
        const counts = [opened("online"), opened("focus")];
        made.at(-1).readyState = EventSource.OPEN;
        return [...counts, opened("focus")];
    }"""
    assert tab.page.evaluate(run) == [2, 3, 3]


def test_a_history_replaces_what_was_known_of_its_series(tab: Tab) -> None:
    run = """async () => {
        const { SeriesStore } = await import("/static/js/store.js");
        const store = new SeriesStore();
        store.addRows([{ name: "m", step: 9, value: 1 }]);
        const merged = { step: 1, update: -1, value: 2, low: 1, high: 3 };
        store.addRows([{ name: "other", step: 2, value: 1 }]);
        store.addHistory({ seq: 4, series: [{ name: "m", points: [merged] }] });
        const steps = (name) => store.points(name).map((point) => point.step);
        const ends = [store.firstStep(), store.lastStep()];
        return [steps("m"), steps("other"), store.thinned, store.longest(), ...ends];
    }"""
    assert tab.page.evaluate(run) == [[1], [2], True, 1, 1, 2]


def test_smoothing_starts_without_bias_and_keeps_gaps(tab: Tab) -> None:
    run = """async (values) => (await import("/static/js/steps.js")).smooth(values, 0.5)"""
    first, gap, second, third = tab.page.evaluate(run, [4, None, 4, 1])
    assert (first, gap, second) == (4, None, 4)
    assert third == pytest.approx((0.5 * 0.75 * 4 + 0.5 * 1) / 0.875)


def test_one_value_a_step_is_that_of_the_last_pass(tab: Tab) -> None:
    """2 x 2 updates: p is 1 in the first pass by construction, so smoothing must not see it."""
    run = """async ([points, job]) => {
        const { lastPass, smooth } = await import("/static/js/steps.js");
        const of = (pool) => lastPass(points, job, pool).map((point) => [point.step, point.value]);
        const values = lastPass(points, job).map((point) => point.value);
        return [of("mean"), of("min"), smooth(values, 0.8)];
    }"""
    seen = {
        1: (1.0, 1.0, 0.9, 0.7),
        2: (1.0, 1.0, None, 0.5),
        3: (1.0, 1.0),
    }  # step 3: the last pass was skipped
    points = [
        {"step": step, "update": update, "value": value}
        for step, values in seen.items()
        for update, value in enumerate(values)
    ]
    mean, least, smoothed = tab.page.evaluate(run, [points, {"updates": 4, "minibatches": 2}])
    assert mean == [[1, pytest.approx(0.8)], [2, 0.5]]
    assert least == [[1, 0.7], [2, 0.5]]
    assert min(smoothed) < 0.7
    assert max(smoothed) == pytest.approx(0.8)


def test_a_target_that_equals_n_stays_on_it(tab: Tab) -> None:
    """The first updates have an N but no target: it must not be drawn apart from N(p) for that."""
    run = """async ([rows, job]) => {
        const { SeriesStore } = await import("/static/js/store.js");
        const { keptShare, lostSteps } = await import("/static/js/lost.js");
        const store = new SeriesStore();
        store.addRows(rows);
        const steps = lostSteps(store, job, null);
        return [steps, keptShare(steps)];
    }"""
    rows = []
    for update, (trained, at_1, target) in enumerate(((1.0, 1.0, None), (0.98, 0.96, 0.98))):
        named = {"ess/mean": trained, "ess/at_1": at_1, "ess/target": target}
        rows += [
            {"step": 1, "update": update, "name": name, "value": value}
            for name, value in named.items()
            if value is not None
        ]
    steps, kept = tab.page.evaluate(run, [rows, {"updates": 2, "minibatches": 1}])
    assert steps == [{"step": 1, "trained": pytest.approx(0.02), "grpo": pytest.approx(0.04), "target": None}]
    assert kept == pytest.approx(0.5)


def test_a_range_takes_whole_steps_and_the_address_keeps_it(tab: Tab) -> None:
    run = """async () => {
        const { inView, range } = await import("/static/js/steps.js");
        const { readView, writeView } = await import("/static/js/address.js");
        const points = [3, 4, 5, 6, 7].flatMap((step) => [{ step, update: 0 }, { step, update: 3 }]);
        const shown = (from, to) => inView(points, range(from, to)).map((point) => point.step);
        const ranges = [range(null, null), range(5, null), range(0, null), range(6, 3), range(-2, 2.4)];
        const view = readView("?tab=charts&from=3&to=6&smooth=1");
        const kept = writeView("?tab=charts&from=9", view);
        const cleared = writeView("?tab=charts&from=3&smooth=1", { zoom: null, smoothed: false });
        const broken = readView("?from=x&to=-1");
        return { shown: [shown(3, 6), shown(4, 4)], ranges, view, kept, cleared, broken };
    }"""
    found = tab.page.evaluate(run)
    assert found["shown"] == [[3, 3, 4, 4, 5, 5, 6, 6], [4, 4]]
    assert found["ranges"] == [
        None,
        {"from": 5, "to": None},
        None,
        {"from": 3, "to": 6},
        {"from": 0, "to": 2},
    ]
    assert found["view"] == {"zoom": {"from": 3, "to": 6}, "smoothed": True, "tables": False}
    assert found["kept"] == "?tab=charts&from=3&to=6&smooth=1"
    assert found["cleared"] == "?tab=charts"
    assert found["broken"] == {"zoom": None, "smoothed": False, "tables": False}


def test_ticks_that_differ_read_differently(tab: Tab) -> None:
    run = """async (axes) => {
        const { percentTick, tick } = await import("/static/js/format.js");
        return [...axes.map((ticks) => ticks.map(tick)), [0, 0.3, 1].map(percentTick)];
    }"""
    axes = [
        [0.99998, 0.99999, 1, 1.00001],
        [1e-6, 1.5e-6, 2e-6],
        [10000, 10001],
        [1234567, 1234568],
        [0.1 + 0.2],
    ]
    near_1, rates, thousands, millions, noise, shares = tab.page.evaluate(run, axes)
    assert near_1 == ["0.99998", "0.99999", "1", "1.00001"]
    assert rates == ["1e-6", "1.5e-6", "2e-6"]
    assert thousands == ["10k", "10.001k"]
    assert millions == ["1.234567M", "1.234568M"]
    assert noise == ["0.3"]
    assert shares == ["0 %", "30 %", "100 %"]


def test_every_chart_has_axis_titles_and_its_series_colours_of_their_own(tab: Tab) -> None:
    run = """async () => {
        const { CHARTS, figures } = await import("/static/js/charts.js");
        const lines = CHARTS.filter((chart) => chart.series && !chart.figure);
        const of = (algorithm) => figures({ algorithm }).flatMap((figure) => figure.id ?? []);
        return {
            untitled: lines.filter((chart) => !chart.unit).map((chart) => chart.id),
            colours: lines.map((chart) => [chart.id, chart.series.map((series) => series.color)]),
            pmpo: of({ name: "pmpo", ess_target: "interpolate", clip_fraction_full: 1 }),
            cispo: of({ name: "cispo" }),
        };
    }"""
    found = tab.page.evaluate(run)
    assert found["untitled"] == []
    assert len(found["colours"]) > 10
    for chart, colours in found["colours"]:
        assert len(set(colours)) == len(colours), chart
        assert None not in colours, chart
    assert {"p", "why", "ess"} <= set(found["pmpo"])
    assert not {"why", "ess"} & set(found["cispo"])


def test_numbers_read_the_same_in_scripts_and_on_the_server(tab: Tab) -> None:
    chance = random.Random(3)
    values = [
        0,
        1,
        -1,
        1e-4,
        9.99e-5,
        0.5,
        999.9996,
        1e6,
        12345.678,
        123456789,
        1.5e15,
        1e16,
        -0.25,
        0.00010001,
    ]
    values += [chance.choice((-1, 1)) * 10 ** chance.uniform(-9, 12) for _ in range(300)]
    run = """async (values) => {
        const { number } = await import("/static/js/format.js");
        return values.map(number);
    }"""
    shown = tab.page.evaluate(run, values)
    differing = [
        (v, s, formatting.number(v)) for v, s in zip(values, shown, strict=True) if s != formatting.number(v)
    ]
    assert differing == []
    assert tab.page.evaluate(run, [None]) == ["–"]
