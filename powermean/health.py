"""From the metrics of a run's last steps to findings in plain words. docs/health.md lists THRESHOLDS.

A metric that has a value per update enters with its mean over the step's updates after the first pass, as in
`powermean watch`: the first pass has ratios near 1 and would hide the others. PEAKS enter with their largest.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Literal

from powermean.contracts.health import Finding, JobHealth, Level

WINDOW = 20  # steps looked at
RECENT = 5  # of those, the newest, which a finding is about; also the fewest steps that say something
REWARD_RISE = 0.1  # the share by which the reward must have risen for a fall of entropy to be its price
P_FALL = 0.1  # how far p/mean must fall over the recent steps to be told beside a clip fraction

Measure = Literal["mean", "peak", "fall", "spike", "steps"]
StepValues = Mapping[int, float]  # by step, ascending
Write = Callable[[float], str]
AT_ONCE: tuple[Measure, ...] = ("peak", "steps")  # measures that need no RECENT steps to speak


@dataclass(frozen=True)
class Threshold:
    """One rule: a metric, how it is measured, and from which value on it is worth a word.

    Measures, over the newest RECENT steps: `mean`; `peak`, the worst; `fall`, the mean over that of the
    window's first RECENT steps; `spike`, the worst over the window's median; `steps`, how many of them have
    any. `watch` and `bad` themselves are inside.
    """

    code: str
    metric: str
    measure: Measure
    side: Literal["above", "below"]
    watch: float
    bad: float
    reason: str
    remedy: str
    algorithms: tuple[str, ...] = ()  # only these; empty is all that no other rule of the metric names

    def level(self, value: float) -> Level:
        sign = 1 if self.side == "above" else -1
        if sign * value >= sign * self.bad:
            return "bad"
        return "watch" if sign * value >= sign * self.watch else "ok"


THRESHOLDS = (
    Threshold(
        "non_finite",
        "trajectories/non_finite",
        "steps",
        "above",
        1,
        RECENT,
        "no trajectory of a sound run has a log-prob that is not finite; in every step, the weights are gone",
        "Lower optimizer.learning_rate, or set model.dtype to float32.",
    ),
    Threshold(
        "ess_collapse",
        "ess/mean",
        "mean",
        "below",
        0.8,
        0.5,
        "sound runs of the demo stay near 0.99; 0.5 is where particle filters resample by custom, as half of "
        "the sample carries no weight",
        "Lower optimizer.learning_rate or training.epochs.",
    ),
    Threshold(
        "clipping",
        "clip_fraction/mean",
        "mean",
        "above",
        0.1,
        0.3,
        "a token whose clip binds teaches nothing; sound runs of the demo clip about 5 %",
        "Lower optimizer.learning_rate or training.epochs.",
    ),
    Threshold(
        "clipping",
        "clip_fraction/mean",
        "mean",
        "above",
        0.3,
        0.6,
        "the sequence clip takes a sequence's tokens all at once: GSPO's paper (arXiv 2507.18071) reports "
        "about 15 % in a run that learns well",
        "Lower optimizer.learning_rate or training.epochs.",
        algorithms=("gspo",),
    ),
    Threshold(
        "entropy_fall",
        "entropy",
        "fall",
        "below",
        0.5,
        0.25,
        "a policy that loses half of its entropy within the window soon samples one completion; not "
        "told where the reward rose by a tenth meanwhile, for that is what entropy buys (arXiv 2505.22617): "
        "the demo goes from 0.53 to 0.11 nats as it learns",
        "Lower optimizer.learning_rate, or raise algorithm.beta.",
    ),
    Threshold(
        "entropy_low",
        "entropy",
        "mean",
        "below",
        0.05,
        0.01,
        "at 0.05 nats a token the likeliest token has about 99 %: a group's completions hardly differ",
        "Raise rollout.temperature or algorithm.beta.",
    ),
    Threshold(
        "no_spread",
        "frac_reward_zero_std",
        "mean",
        "above",
        0.5,
        0.95,
        "a group whose rewards are all equal has advantage 0: from half on, most of the sampling is wasted, "
        "from 0.95 on next to nothing is trained; a run of the demo ends near 0.9, its problems solved",
        "Choose data that the model solves sometimes: harder where the reward is high, easier where it is "
        "low. Where training brought it that low, lower optimizer.learning_rate.",
    ),
    Threshold(
        "mismatch_kl",
        "sampling/kl",
        "mean",
        "above",
        0.01,
        0.1,
        "the transformers engine and the trainer, both in float32, agree to 1e-5 nats; at 0.1 the data is "
        "another policy's",
        "Set algorithm.importance_sampling_correction to token, lower rollout.max_staleness where it is "
        "above 0, set model.dtype to float32, or set rollout.engine to transformers.",
    ),
    Threshold(
        "mismatch_token",
        "sampling/sampling_logp_difference/max",
        "peak",
        "above",
        1.0,
        3.0,
        "at 1 nat one token's ratio is off by e = 2.7 before training starts, far outside the clip range",
        "Set algorithm.importance_sampling_correction to token, lower rollout.max_staleness where it is "
        "above 0, set model.dtype to float32, or set rollout.engine to transformers.",
    ),
    Threshold(
        "grad_spike",
        "grad_norm",
        "spike",
        "above",
        5.0,
        20.0,
        "the norm of a sound run stays within a factor of 2 or 3 of its median; clipping bounds one step's "
        "length, not a wrong direction",
        "Lower optimizer.max_grad_norm or optimizer.learning_rate.",
    ),
    Threshold(
        "grader_failures",
        "grader/failures",
        "steps",
        "above",
        1,
        RECENT,
        "a completion whose grader failed counts as wrong; in every step, the reward measures the grader",
        "Read the job's log; mend the grader in reward, or raise reward.timeout_s.",
    ),
    Threshold(
        "cut_off",
        "completions/clipped_ratio",
        "mean",
        "above",
        0.3,
        0.7,
        "a completion that is cut off is graded on what it had no room to say",
        "Raise rollout.max_new_tokens, or name the end of an answer in rollout.stop.",
    ),
)

PEAKS = frozenset(rule.metric for rule in THRESHOLDS if rule.measure in ("peak", "spike"))
NAMES = tuple(dict.fromkeys(["p/mean", "reward", *(rule.metric for rule in THRESHOLDS)]))
_WORST_FIRST: tuple[Level, ...] = ("bad", "watch", "ok")


@dataclass(frozen=True)
class _Seen:
    """What a rule's sentence is made of."""

    values: StepValues  # of the window
    recent: StepValues
    value: float  # as measured
    steps: str  # the recent ones, in words
    others: Mapping[str, StepValues]  # every series over the recent steps


def health(series: Mapping[str, StepValues], algorithm: str) -> JobHealth:
    """Judge the newest WINDOW steps of the series NAMES, of one value a step.

    Older steps, other names and missing series say nothing. Before there are RECENT steps, only the rules
    speak that are measured AT_ONCE; without a finding the one is then `too_few_steps`.
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
    """The rules that hold for an algorithm: its own in place of everybody's."""
    own = [rule for rule in THRESHOLDS if algorithm in rule.algorithms]
    replaced = {rule.code for rule in own}
    return [rule for rule in THRESHOLDS if not rule.algorithms and rule.code not in replaced] + own


def sentence(finding: Finding) -> str:
    """A finding as one line of plain text: its level, what was seen, what to change."""
    remedy = f" {finding.remedy}" if finding.remedy else ""
    return f"{LABELS.get(finding.code, finding.level)}: {finding.message}.{remedy}"


def verdict(state: JobHealth) -> frozenset[tuple[str, Level]]:
    """What of it is news when it changes: the codes and levels, not every digit."""
    return frozenset((one.code, one.level) for one in state.findings)


def _judge(rule: Threshold, window: Mapping[str, StepValues], newest: Sequence[int]) -> Finding | None:
    """The rule's finding over the `newest` steps; None where it is kept or has no numbers."""
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
    """None where the numbers don't suffice."""
    if not recent:
        return None
    worst = max(recent.values()) if rule.side == "above" else min(recent.values())
    if rule.measure == "mean":
        return fmean(recent.values())
    if rule.measure == "peak":
        return worst
    if rule.measure == "steps":
        return sum(value > 0 for value in recent.values())
    reference = _start(values) if rule.measure == "fall" else median(values.values())
    if len(values) < 2 * RECENT or reference <= 0:
        return None
    return (fmean(recent.values()) if rule.measure == "fall" else worst) / reference


def _rose(reward: StepValues, newest: Sequence[int]) -> bool:
    """Whether the reward over the `newest` steps is above that of the window's start by REWARD_RISE of it."""
    recent = [value for step, value in reward.items() if step in newest]
    if not recent:
        return False
    rise = fmean(recent) - _start(reward)
    return rise > 0 and rise >= REWARD_RISE * abs(_start(reward))


def _start(values: StepValues) -> float:
    return fmean(list(values.values())[:RECENT])


def _fall_of_p(seen: _Seen) -> str:
    """What to add to a clip fraction when p fell as well."""
    p = list(seen.others.get("p/mean", {}).values())
    if not p or p[0] - p[-1] < P_FALL:
        return ""
    return f" and p fell from {p[0]:.2f} to {p[-1]:.2f}"


def _at_reward(seen: _Seen) -> str:
    """Too easy or too hard: the mean reward tells which."""
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
        f"KL between engine and trainer is {seen.value:.2g} nats a token over {seen.steps}: they disagree"
    ),
    "mismatch_token": lambda seen: (
        f"a token's log-prob differs by {seen.value:.2g} nats between engine and trainer at step "
        f"{_peak_step(seen)}: they disagree"
    ),
    "grad_spike": lambda seen: (
        f"gradient norm {seen.recent[_peak_step(seen)]:.3g} at step {_peak_step(seen)}, {seen.value:.3g} "
        f"times the median of steps {min(seen.values)} to {max(seen.values)}: one batch pulls hard"
    ),
    "grader_failures": lambda seen: _many(seen, "gradings failed") + ": those completions have reward 0",
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
    message = f"{steps} of the {RECENT} steps that a judgement needs"
    return Finding(code="too_few_steps", level="ok", message=message)


def _healthy(window: Mapping[str, StepValues], newest: Sequence[int]) -> Finding:
    recent = {name: {s: v for s, v in values.items() if s in newest} for name, values in window.items()}
    told = [write(fmean(recent[name].values())) for name, write in _HEALTHY.items() if recent.get(name)]
    span = f"{len(newest)} steps ({newest[0]} to {newest[-1]})"
    message = f"{', '.join(told)} over {span}" if told else f"no threshold crossed over {span}"
    return Finding(code="healthy", level="ok", message=message)
