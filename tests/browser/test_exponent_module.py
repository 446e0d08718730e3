"""Exponent p over the run, as numbers: pooling, sentence, classes, columns; run in the browser."""

from typing import Any, get_args

import pytest

from powermean.contracts.algorithms import AlgorithmSpec
from tests.support.browser_tabs import Tab, Tabs

PMPO = {"name": "pmpo", "ess_target": "interpolate", "clip_fraction_full": 1}
JOB = {"algorithm": PMPO, "updates": 4, "minibatches": 2, "trajectories": 64}


@pytest.fixture
def tab(tabs: Tabs) -> Tab:
    opened = tabs.stranger()
    opened.page.goto("/login")
    return opened


def call(tab: Tab, expression: str, given: Any = None) -> Any:
    """Evaluate an expression over exponent.js (`e`), a store filled with `given.rows`, and `given`."""
    script = f"""async (given) => {{
        const e = await import("/static/js/exponent.js");
        const {{ SeriesStore }} = await import("/static/js/store.js");
        const store = new SeriesStore();
        store.addRows(given?.rows ?? []);
        return {expression};
    }}"""
    return tab.page.evaluate(script, given)


def pooled(step: int, defined: int, below: int, none: int, **known: float) -> list[dict[str, Any]]:
    named = {"defined": defined, "below_1": below, "undefined": none} | known
    return [{"step": step, "name": f"p/last_pass/{name}", "value": value} for name, value in named.items()]


def sentence(tab: Tab, rows: list[dict[str, Any]], job: dict[str, Any] = JOB, zoom: Any = None) -> str:
    steps = "e.exponentSteps(store, given.job)"
    parts = f"e.sentence(e.exponentRule(given.job.algorithm), given.job, {steps}, given.zoom)"
    said = f"{parts}.map((part) => part.strong ?? part).join('')"
    told: str = call(tab, said, {"rows": rows, "job": job, "zoom": zoom})
    return told


RUN = [
    *pooled(1, 40, 10, 24, mean=0.95, q10=0.8, min=0.7),
    *pooled(2, 20, 10, 44, mean=0.9, q10=0.75, min=0.6),
    *pooled(3, 0, 0, 64),
]


def test_the_sentence_counts_trajectories_over_the_steps_in_view(tab: Tab) -> None:
    assert sentence(tab, RUN) == (
        "In the last pass over each batch p was below 1 for 20 of 60 trajectories that could be learnt from "
        "(33 %): 0.8 on average there, lowest 0.6 in step 2. 69 % of all had no p: no reward "
        "spread in their group."
    )
    assert "10 of 40" in sentence(tab, RUN, zoom={"from": 1, "to": 1})
    assert "lowest 0.7 in step 1" in sentence(tab, RUN, zoom={"from": 1, "to": 1})
    assert sentence(tab, RUN, zoom={"from": 3, "to": None}).startswith("No trajectory had a p")
    assert sentence(tab, []) == ""


def test_other_objectives_and_one_update_a_step_say_why_nothing_is_drawn(tab: Tab) -> None:
    def said(job: dict[str, Any]) -> str:
        return sentence(tab, [], JOB | job)

    assert said({"algorithm": {"name": "grpo"}}) == "p = 1 for every trajectory: grpo fixes it."
    assert said({"algorithm": {"name": "power_mean", "p": 0.5}}).startswith("p = 0.5 for every")
    assert said({"algorithm": {"name": "cispo"}}).endswith("there is no exponent p.")
    assert "straight line" in said({"algorithm": {"name": "holder"}})
    assert "no p can differ from 1" in said({"onPolicy": True})


def test_every_algorithm_of_the_contract_has_a_rule(tab: Tab) -> None:

    for model in get_args(get_args(AlgorithmSpec)[0]):
        name = model.model_fields["name"].default
        kind = call(tab, "e.exponentRule(given.algorithm).kind", {"algorithm": {"name": name, "p": 0.5}})
        assert (kind == "none") is (name == "cispo"), name


def test_jobs_from_before_the_pooled_metrics_are_pooled_from_their_updates(tab: Tab) -> None:
    """32 trajectories an update; the last pass's first update has 24 with a p, its second was skipped."""
    rows = [
        {"step": 1, "update": update, "name": "p/mean", "value": value}
        for update, value in ((1, 1.0), (2, 0.9))
    ]
    rows += [{"step": 1, "update": update, "name": "p/undefined", "value": 8.0} for update in (1, 2)]
    rows += [
        {"step": 1, "update": 2, "name": name, "value": value}
        for name, value in (("p/q10", 0.7), ("p/share_below_1", 0.5))
    ]
    (step,) = call(tab, "e.exponentSteps(store, given.job)", {"rows": rows, "job": JOB})
    assert step == {"step": 1, "mean": 0.9, "q10": 0.7, "min": None, "defined": 24, "below": 12, "none": 40}
    assert "lowest" not in sentence(tab, rows)


def test_merged_points_of_a_long_run_stand_for_all_their_steps(tab: Tab) -> None:
    merged = """e.summarise([10, 20, 21].map((step) => (
        { step, mean: 0.9, min: 0.5, defined: 4, below: 2, none: 4, merged: step < 21 })), null)"""
    assert call(tab, merged) == {
        "trajectories": 21 * 8,
        "defined": 21 * 4,
        "below": 21 * 2,
        "lowest": {"p": 0.5, "step": 10},
        "meanBelow": pytest.approx(0.8),
    }


def test_classes_have_fixed_edges_and_cells_show_1_only_for_1(tab: Tab) -> None:
    values = [1, 0.999, 0.95, 0.949, 0.9, 0.8, 0.799, 0, -0.5]
    assert call(tab, "given.map(e.classOf)", values) == [0, 1, 1, 2, 2, 3, 4, 4, 4]
    assert call(tab, "given.map(e.cellText)", values) == [
        "1", ".99", ".95", ".95", ".90", ".80", ".80", ".00", "-.50"
    ]  # fmt: skip


def test_columns_are_never_thinner_than_three_pixels_and_stay_where_they_are(tab: Tab) -> None:
    assert call(tab, "[20, 500, 100000].map((steps) => e.columnSize(steps, 700))") == [1, 3, 429]
    points = [{"step": step, "update": 0, "value": float(step)} for step in range(1, 8)]
    cells = call(tab, "e.strip(given, 3)", points)
    assert [(cell["from"], cell["to"], cell["value"]) for cell in cells] == [(1, 3, 2), (4, 6, 5), (7, 9, 7)]
    more = call(tab, "e.strip(given, 3)", [*points, {"step": 8, "update": 0, "value": 8.0}])
    assert more[:2] == cells[:2]
    assert more[2]["value"] == 7.5


def test_a_columns_mean_is_weighed_by_how_many_trajectories_have_a_p(tab: Tab) -> None:
    (column,) = call(tab, "e.columns(e.exponentSteps(store, given.job), 3)", {"rows": RUN, "job": JOB})
    assert column["mean"] == pytest.approx((40 * 0.95 + 20 * 0.9) / 60)
    assert (column["min"], column["defined"], column["below"], column["none"]) == (
        0.6,
        20,
        pytest.approx(20 / 3),
        44,
    )


def test_the_line_follows_the_spec(tab: Tab) -> None:
    expected = "e.expectedExponent(given)?.(0.25) ?? null"
    assert call(tab, expected, PMPO) == pytest.approx(0.75**0.5)
    assert call(tab, expected, PMPO | {"clip_fraction_full": 0.5}) == pytest.approx(0.5**0.5)
    assert call(tab, expected, PMPO | {"clip_fraction_full": 0.1}) == 0
    assert call(tab, expected, PMPO | {"ess_target": "absolute"}) is None


def test_pairs_are_fetched_once_kept_by_step_and_cut_by_a_rewind(tab: Tab) -> None:
    run = """async () => {
        const { Pairs } = await import("/static/js/pairs.js");
        const asked = [];
        let newest = 60;
        const answer = (from, to) => {
            const all = Array.from({ length: to - from + 1 }, (_, i) => from + i);
            const steps = all.filter((step) => step <= newest);
            return { steps, rows: steps.filter((step) => step !== 58).map((step) => ({ step, p: 1 })) };
        };
        const fetched = async (from, to) => { asked.push([from, to]); return answer(from, to); };
        const pairs = new Pairs(fetched, () => {});
        const rest = () => new Promise((done) => setTimeout(done, 0));
        const count = (from, to) => pairs.rows(from, to).length;
        const want = async (from, to) => { pairs.want(from, to); await rest(); return count(from, to); };
        const counts = [await want(1, 60), await want(1, 60), await want(1, 61)];
        newest = 61;
        counts.push(await want(1, 61));
        pairs.rewind(60);
        counts.push(count(1, 61), await want(1, 61));
        pairs.want(1, 62);
        pairs.rewind(61);
        await rest();
        counts.push(count(1, 62));
        return [asked, counts];
    }"""
    asked, counts = tab.page.evaluate(run)
    assert asked == [[11, 60], [61, 61], [61, 61], [60, 61], [62, 62]]
    assert counts == [49, 49, 48, 49, 47, 49, 47]
