"""Turns the metrics of a run's last steps into findings in plain words. docs/health.md lists the rules.

A metric with a value per update counts with its mean over the step's updates after the first pass, as in
`powermean watch`: in the first pass ratios are near 1 and would hide the others. PEAKS count with their
largest value.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from powermean.contracts.health import Finding, JobHealth, Level
from powermean.health_rules import (
    AT_ONCE,
    NAMES,
    P_FALL,
    RECENT,
    REWARD_RISE,
    THRESHOLDS,
    WINDOW,
    StepValues,
    Threshold,
)

Write = Callable[[float], str]
_WORST_FIRST: tuple[Level, ...] = ("bad", "watch", "ok")


@dataclass(frozen=True)
class _Seen:
    """What a rule's sentence is built from."""

    values: StepValues  # of the window
    recent: StepValues
    value: float  # as measured
    steps: str  # the recent ones, in words
    others: Mapping[str, StepValues]  # every series over the recent steps


def health(series: Mapping[str, StepValues], algorithm: str) -> JobHealth:
    """Judge the newest WINDOW steps of the series NAMES, with one value per step.

    Older steps, other names and missing series are ignored. Before there are RECENT steps, only the rules
    measured AT_ONCE apply; if they find nothing, the finding is `too_few_steps`.
    """
    known = {name: series[name] for name in NAMES if series.get(name)}
    steps = sorted({step for values in known.values() for step in values})[-WINDOW:]
    window = {
        name: {step: values[step] for step in sorted(values) if step >= steps[0]}
        for name, values in known.items()
    }
    early = len(steps) < RECENT
    rules = [rule for rule in rules_of(algorithm) if not early or rule.measure in AT_ONCE]
    found = [finding for rule in rules if (finding := _judge(rule, window, steps[-RECENT:]))]
    if any(finding.code == "never_ends" for finding in found):  # it says more
        found = [finding for finding in found if finding.code != "cut_off"]
    found.sort(key=lambda finding: _WORST_FIRST.index(finding.level))
    if not found:
        found = [_too_few(len(steps)) if early else _healthy(window, steps[-RECENT:])]
    return JobHealth(
        level=found[0].level,
        first_step=steps[0] if steps else None,
        last_step=steps[-1] if steps else None,
        findings=tuple(found),
    )


def rules_of(algorithm: str) -> list[Threshold]:
    """The rules that apply to an algorithm: its own replace the general ones."""
    own = [rule for rule in THRESHOLDS if algorithm in rule.algorithms]
    replaced = {rule.code for rule in own}
    return [rule for rule in THRESHOLDS if not rule.algorithms and rule.code not in replaced] + own


def sentence(finding: Finding) -> str:
    """A finding as one line of plain text: its level, what was seen, what to change."""
    remedy = f" {finding.remedy}" if finding.remedy else ""
    return f"{LABELS.get(finding.code, finding.level)}: {finding.message}.{remedy}"


def verdict(state: JobHealth) -> frozenset[tuple[str, Level]]:
    """What counts as a change worth announcing: codes and levels, not every digit."""
    return frozenset((one.code, one.level) for one in state.findings)


def _judge(rule: Threshold, window: Mapping[str, StepValues], newest: Sequence[int]) -> Finding | None:
    """The rule's finding over the `newest` steps; None if it is not violated or has no numbers."""
    values = window.get(rule.metric, {})
    recent = {step: value for step, value in values.items() if step in newest}
    value = _measure(rule, values, recent)
    if value is None or (level := rule.level(value)) == "ok":
        return None
    if rule.code == "entropy_fall" and _rose(window.get("reward", {}), newest):
        return None
    others = {name: {s: v for s, v in one.items() if s in recent} for name, one in window.items()}
    message = _SENTENCES[rule.code](_Seen(values, recent, value, _span(recent), others))
    return Finding(code=rule.code, level=level, message=message, remedy=rule.remedy)


def _measure(rule: Threshold, values: StepValues, recent: StepValues) -> float | None:
    """None if there are too few numbers."""
    if not recent:
        return None
    best, worst = min(recent.values()), max(recent.values())
    if rule.side == "below":
        best, worst = worst, best
    if rule.measure == "mean":
        return fmean(recent.values())
    if rule.measure in ("peak", "floor"):
        return worst if rule.measure == "peak" else best
    if rule.measure == "steps":
        return sum(value > 0 for value in recent.values())
    reference = _start(values) if rule.measure == "fall" else median(values.values())
    if len(values) < 2 * RECENT or reference <= 0:
        return None
    return (fmean(recent.values()) if rule.measure == "fall" else worst) / reference


def _rose(reward: StepValues, newest: Sequence[int]) -> bool:
    """Whether the reward of the `newest` steps exceeds the window's start by a share of REWARD_RISE."""
    recent = [value for step, value in reward.items() if step in newest]
    if not recent:
        return False
    rise = fmean(recent) - _start(reward)
    return rise > 0 and rise >= REWARD_RISE * abs(_start(reward))


def _start(values: StepValues) -> float:
    return fmean(list(values.values())[:RECENT])


def _fall_of_p(seen: _Seen) -> str:
    """What to add to a clip fraction if p fell as well."""
    p = list(seen.others.get("p/mean", {}).values())
    if not p or p[0] - p[-1] < P_FALL:
        return ""
    return f" and p fell from {p[0]:.2f} to {p[-1]:.2f}"


def _at_reward(seen: _Seen) -> str:
    """The mean reward says whether the problems are too easy or too hard."""
    reward = seen.others.get("reward")
    return f" at a mean reward of {fmean(reward.values()):.2f}" if reward else ""


def _span(steps: StepValues) -> str:
    """`5 steps (16 to 20)`, or `step 3`."""
    first, last = min(steps), max(steps)
    return f"step {last}" if first == last else f"{len(steps)} steps ({first} to {last})"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share < 0.095 else f"{100 * share:.0f} %"


def _peak_step(seen: _Seen) -> int:
    return max(seen.recent, key=lambda step: seen.recent[step])


def _many(seen: _Seen, what: str) -> str:
    return f"{sum(seen.recent.values()):g} {what} in {seen.value:g} of {seen.steps}"


_SENTENCES: dict[str, Callable[[_Seen], str]] = {
    "non_finite": lambda seen: (
        _many(seen, "trajectories without finite log-probs") + ": the numbers overflow"
    ),
    "ess_collapse": lambda seen: (
        f"ESS is {seen.value:.2f} of a trajectory's length over {seen.steps}: few tokens decide the update"
    ),
    "clipping": lambda seen: (
        f"{_percent(seen.value)} of tokens clipped{_fall_of_p(seen)} over {seen.steps}: "
        "the policy moves faster than its data"
    ),
    "entropy_fall": lambda seen: (
        f"entropy fell from {_start(seen.values):.3g} to {fmean(seen.recent.values()):.3g} nats over steps "
        f"{min(seen.values)} to {max(seen.values)}: the policy stops exploring"
    ),
    "entropy_low": lambda seen: (
        f"entropy is {seen.value:.2g} nats over {seen.steps}: completions of a group hardly differ"
    ),
    "no_spread": lambda seen: (
        f"{_percent(seen.value)} of groups had equal rewards over {seen.steps}{_at_reward(seen)}: "
        "nothing to learn from them"
    ),
    "mismatch_kl": lambda seen: (
        f"KL between engine and trainer is {seen.value:.2g} nats per token over {seen.steps}: they disagree"
    ),
    "mismatch_token": lambda seen: (
        f"a token's log-prob differs by {seen.value:.2g} nats between engine and trainer at step "
        f"{_peak_step(seen)}: they disagree"
    ),
    "grad_spike": lambda seen: (
        f"gradient norm {seen.recent[_peak_step(seen)]:.3g} at step {_peak_step(seen)}, {seen.value:.3g} "
        f"times the median of steps {min(seen.values)} to {max(seen.values)}: one batch dominates"
    ),
    "grader_failures": lambda seen: _many(seen, "gradings failed") + ": those completions have reward 0",
    "rows_left_out": lambda seen: (
        f"{_percent(seen.value)} of the dataset's rows left out at step {_peak_step(seen)}: their prompt "
        "does not fit, or no completion can match their answer"
    ),
    "never_ends": lambda seen: (
        f"{_percent(seen.value)} of completions or more ran to max_new_tokens in {seen.steps}: the model "
        "does not end them"
    ),
    "cut_off": lambda seen: (
        f"{_percent(seen.value)} of completions cut off at max_new_tokens over {seen.steps}: they don't end"
    ),
}

_HEALTHY: dict[str, Write] = {
    "clip_fraction/mean": lambda value: f"{_percent(value)} of tokens clipped",
    "p/mean": lambda value: f"p {value:.2f}",
    "ess/mean": lambda value: f"ESS {value:.2f}",
    "entropy": lambda value: f"entropy {value:.2g} nats",
    "frac_reward_zero_std": lambda value: f"{_percent(value)} of groups without spread",
}


LABELS = {"healthy": "healthy", "too_few_steps": "too early to say"}


def _too_few(steps: int) -> Finding:
    message = f"{steps} of the {RECENT} steps needed for a judgement"
    return Finding(code="too_few_steps", level="ok", message=message)


def _healthy(window: Mapping[str, StepValues], newest: Sequence[int]) -> Finding:
    recent = {name: {s: v for s, v in values.items() if s in newest} for name, values in window.items()}
    told = [write(fmean(recent[name].values())) for name, write in _HEALTHY.items() if recent.get(name)]
    span = f"{len(newest)} steps ({newest[0]} to {newest[-1]})"
    message = f"{', '.join(told)} over {span}" if told else f"no threshold crossed over {span}"
    return Finding(code="healthy", level="ok", message=message)
