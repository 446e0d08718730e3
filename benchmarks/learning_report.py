"""From the records of benchmarks/learning.py to tables with bootstrap intervals, and the document's plot."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from learning_arms import ARMS, CONDITIONS, Arm, Comparison, Condition
from learning_plot import Panel, Row, draw

ROOT = Path(__file__).resolve().parents[1]
RAW_RESULTS = ROOT / "docs" / "results-learning.jsonl"
DOCUMENT = ROOT / "docs" / "results.md"
PLOT = ROOT / "docs" / "images" / "results-learning.png"
BEGIN, END = "<!-- tables: begin -->", "<!-- tables: end -->"
RESAMPLES = 10_000
BASELINE = "grpo"


@dataclass(frozen=True)
class Record:
    """What one run left behind (learning_run.train)."""

    arm: str
    condition: str
    seed: int
    curve: tuple[float, ...]  # mean reward of each rollout batch
    held_out: dict[str, float]
    held_out_before: dict[str, float]
    measured: dict[str, float]  # means over the updates that find the policy moved

    @property
    def area(self) -> float:
        """Mean reward over all steps: the area under the reward curve, per step."""
        return fmean(self.curve)


@dataclass(frozen=True)
class Interval:
    """A mean over seeds and the bootstrap's 95 % interval around it."""

    mean: float
    low: float
    high: float

    def text(self, form: str) -> str:
        return f"{self.mean:{form}} [{self.low:{form}}, {self.high:{form}}]"


Value = Callable[[Record], float]
HELD_OUT = ("sampled_reward", "sampled_exact", "greedy_exact")
# What is judged, higher is better.
OUTCOMES: dict[str, Value] = {
    "area": lambda record: record.area,
    "reward": lambda record: record.held_out["sampled_reward"],
    "accuracy": lambda record: record.held_out["sampled_exact"],
    "greedy": lambda record: record.held_out["greedy_exact"],
}
MEASURES = ("distance_to_grpo", "p", "p_below_0.95", "clip_fraction", "ess", "ess_at_1")


def read_records(path: Path) -> list[Record]:
    """Records of a JSON lines file, none if it is not there. A run that is there twice counts once."""
    if not path.exists():
        return []
    found = {}
    for line in path.read_text().splitlines():
        raw = json.loads(line)
        record = Record(
            arm=raw["arm"],
            condition=raw["condition"],
            seed=raw["seed"],
            curve=tuple(raw["curve"]),
            held_out=raw["held_out"],
            held_out_before=raw["held_out_before"],
            measured={name: raw[name] for name in MEASURES},
        )
        found[record.arm, record.condition, record.seed] = record
    return list(found.values())


def bootstrap(values: Sequence[float], resamples: int = RESAMPLES, seed: int = 0) -> Interval:
    """Percentile bootstrap of the mean; values are one a seed, and seeds are resampled."""
    sample = np.asarray(values, dtype=np.float64)
    draws = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[draws].mean(axis=1), [0.025, 0.975])
    return Interval(float(sample.mean()), float(low), float(high))


def differences(records: Sequence[Record], arm: str, condition: str, value: Value) -> list[float]:
    """value(arm) - value(GRPO) for each seed that has both: the two saw the same problems and draws."""
    by_seed = {record.seed: value(record) for record in _of(records, BASELINE, condition)}
    pairs = [record for record in _of(records, arm, condition) if record.seed in by_seed]
    return [value(record) - by_seed[record.seed] for record in pairs]


def tables(records: Sequence[Record]) -> str:
    """All tables as Markdown: for each condition what was learned and what the objective did."""
    parts = []
    for condition in CONDITIONS:
        if not _of(records, BASELINE, condition.name):
            continue
        parts.append(f"### {condition.title}\n")
        for comparison, title in _COMPARISONS.items():
            parts += [f"{title}\n", _learned(records, comparison, condition)]
        parts += ["What the objectives did:\n", _geometry(records, condition)]
    return "\n".join(parts)


def write_document(records: Sequence[Record]) -> None:
    """The tables between the document's markers, and the plot beside it."""
    text = DOCUMENT.read_text()
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{tables(records)}\n{END}{after}")
    draw([_panel(records, condition) for condition in CONDITIONS], PLOT)


_COMPARISONS: dict[Comparison, str] = {
    "shared": "At the same clip range, 1 +- 0.2:",
    "recipe": "Each by its published clip range:",
}


def _of(records: Sequence[Record], arm: str, condition: str) -> list[Record]:
    return [record for record in records if (record.arm, record.condition) == (arm, condition)]


def _shown(comparison: Comparison) -> list[Arm]:
    return [arm for arm in ARMS if comparison in arm.shown]


def _learned(records: Sequence[Record], comparison: Comparison, condition: Condition) -> str:
    lines = [
        "| objective | d | seeds | mean area | - GRPO | held-out reward | - GRPO "
        "| held-out accuracy | - GRPO | greedy accuracy | - GRPO |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    start = [run.held_out_before for run in _of(records, BASELINE, condition.name)]
    before = [bootstrap([values[name] for values in start]).text(".3f") for name in HELD_OUT]
    lines.append(f"| before training | | {len(start)} | | | {' | | '.join(before)} | |")
    for arm in _shown(comparison):
        runs = _of(records, arm.name, condition.name)
        if not runs:
            continue
        distance = fmean(run.measured["distance_to_grpo"] for run in runs)
        cells = [arm.title, f"{distance:.2f}", str(len(runs))]
        for value in OUTCOMES.values():
            cells.append(bootstrap([value(run) for run in runs]).text(".3f"))
            gaps = differences(records, arm.name, condition.name, value)
            cells.append("" if arm.name == BASELINE or not gaps else bootstrap(gaps).text("+.3f"))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _geometry(records: Sequence[Record], condition: Condition) -> str:
    lines = [
        "| objective | clip | d | mean p | p < 0.95 | clip fraction f | N(p) | N(1) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for arm in ARMS:
        runs = _of(records, arm.name, condition.name)
        if not runs:
            continue
        mean = {name: fmean(run.measured[name] for run in runs) for name in MEASURES}
        cells = [
            arm.title,
            "1 +- 0.2" if "shared" in arm.shown else "e^+-0.4",
            f"{mean['distance_to_grpo']:.2f}",
            f"{mean['p']:.2f}",
            f"{mean['p_below_0.95']:.0%}",
            f"{mean['clip_fraction']:.1%}",
            f"{mean['ess']:.3f}",
            f"{mean['ess_at_1']:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _panel(records: Sequence[Record], condition: Condition) -> Panel:
    curves, rows = {}, []
    for arm in ARMS:
        runs = _of(records, arm.name, condition.name)
        if not runs:
            continue
        title = arm.title if "shared" in arm.shown else f"{arm.title}, clip e^±0.4"
        curves[title] = np.mean([run.curve for run in runs], axis=0)
        if arm.name != BASELINE:
            gaps = [
                bootstrap(differences(records, arm.name, condition.name, OUTCOMES[name]))
                for name in ("area", "reward")
            ]
            area, reward = ((gap.mean, gap.low, gap.high) for gap in gaps)
            rows.append(Row(title, area, reward))
    return Panel(condition.title, curves, rows)
