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


def test_a_history_replaces_what_was_known(tab: Tab) -> None:
    run = """async () => {
        const { SeriesStore } = await import("/static/js/store.js");
        const store = new SeriesStore();
        store.addRows([{ name: "m", step: 9, value: 1 }]);
        const merged = { step: 1, update: -1, value: 2, low: 1, high: 3 };
        store.setHistory({ seq: 4, series: [{ name: "m", points: [merged] }] });
        const steps = store.points("m").map((point) => point.step);
        return [steps, store.points("other"), store.seq, store.thinned, store.longest()];
    }"""
    assert tab.page.evaluate(run) == [[1], [], 4, True, 1]


def test_smoothing_starts_without_bias_and_keeps_gaps(tab: Tab) -> None:
    run = """async (values) => (await import("/static/js/store.js")).smooth(values, 0.5)"""
    first, gap, second, third = tab.page.evaluate(run, [4, None, 4, 1])
    assert (first, gap, second) == (4, None, 4)
    assert third == pytest.approx((0.5 * 0.75 * 4 + 0.5 * 1) / 0.875)


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
