"""Every rule on both sides of its thresholds, and the sentences that people read."""

import pytest

from powermean.contracts.health import Finding, JobHealth
from powermean.contracts.job import JobSpec
from powermean.contracts.metrics import METRICS
from powermean.health import health, sentence, verdict
from powermean.health_rules import RECENT, THRESHOLDS, WINDOW, Threshold

Values = list[float]


def judged(series: dict[str, Values], algorithm: str = "pmpo") -> JobHealth:
    """One value a step, from step 1 on."""
    return health({name: dict(enumerate(values, 1)) for name, values in series.items()}, algorithm)


def measured_as(rule: Threshold, value: float) -> Values:
    """Twenty steps whose last five the rule measures as `value`."""
    if rule.measure == "steps":
        return [*[0.0] * 15, *[float(i < value) for i in range(RECENT)]]
    if rule.measure == "spike":
        return [*[2.0] * 19, 2.0 * value]
    if rule.measure == "fall":
        return [*[2.0] * 15, *[2.0 * value] * 5]
    return [*[0.5] * 15, *[value] * 5]


def found(series: dict[str, Values], algorithm: str = "pmpo") -> dict[str, Finding]:
    return {one.code: one for one in judged(series, algorithm).findings}


@pytest.mark.parametrize("rule", THRESHOLDS, ids=lambda rule: rule.code)
def test_a_threshold_is_inside_and_short_of_it_is_not(rule: Threshold) -> None:
    algorithm = rule.algorithms[0] if rule.algorithms else "pmpo"
    short = 1 if rule.measure == "steps" else 0.001 * rule.watch
    short = -short if rule.side == "above" else short
    past = -short * 0.001 if rule.measure != "steps" else 0
    assert rule.code not in found({rule.metric: measured_as(rule, rule.watch + short)}, algorithm)
    assert found({rule.metric: measured_as(rule, rule.watch + past)}, algorithm)[rule.code].level == "watch"
    assert found({rule.metric: measured_as(rule, rule.bad + short)}, algorithm)[rule.code].level == "watch"
    finding = found({rule.metric: measured_as(rule, rule.bad + past)}, algorithm)[rule.code]
    assert finding.level == "bad"
    assert "step" in finding.message


@pytest.mark.parametrize("rule", THRESHOLDS, ids=lambda rule: rule.code)
def test_a_remedy_names_fields_that_a_spec_has(rule: Threshold) -> None:
    schema = str(JobSpec.model_json_schema())
    fields = [word.strip(".,;") for word in rule.remedy.split() if "." in word.strip(".,;")]
    assert fields
    assert all(f"'{part}'" in schema for field in fields for part in field.split("."))
    assert rule.metric in METRICS


def test_clipping_and_a_falling_p_are_told_together() -> None:
    clip = [*[0.01] * 5, *[0.12] * 5]
    p = [*[1.0] * 5, 1.0, 0.95, 0.9, 0.85, 0.8]
    finding = found({"clip_fraction/mean": clip, "p/mean": p})["clipping"]
    assert finding.message == (
        "12 % of tokens clipped and p fell from 1.00 to 0.80 over 5 steps (6 to 10): "
        "the policy moves faster than its data"
    )
    assert (
        "p fell" not in found({"clip_fraction/mean": clip, "p/mean": [1.0] * 9 + [0.95]})["clipping"].message
    )


def test_a_sequence_clip_has_its_own_threshold() -> None:
    assert "clipping" in found({"clip_fraction/mean": [0.15] * 5})
    assert "clipping" not in found({"clip_fraction/mean": [0.15] * 5}, "gspo")


def test_a_healthy_run_has_one_finding_with_its_numbers() -> None:
    state = judged({"p/mean": [0.97] * 8, "ess/mean": [0.99] * 8, "clip_fraction/mean": [0.02] * 8})
    assert state.level == "ok"
    assert [sentence(one) for one in state.findings] == [
        "healthy: 2 % of tokens clipped, p 0.97, ESS 0.99 over 5 steps (4 to 8)."
    ]


def test_entropy_spent_on_a_rising_reward_is_no_collapse() -> None:
    entropy = [*[0.5] * 5, *[0.1] * 5]
    assert "entropy_fall" in found({"entropy": entropy, "reward": [0.4] * 5 + [0.43] * 5})
    assert "entropy_fall" not in found({"entropy": entropy, "reward": [0.4] * 5 + [0.45] * 5})
    assert "entropy_fall" not in found({"entropy": entropy, "reward": [0.0] * 5 + [0.1] * 5})
    assert "entropy_fall" in found({"entropy": entropy, "reward": [0.0] * 10})
    assert "entropy_fall" in found({"entropy": entropy, "reward": [-1.0] * 5 + [-1.2] * 5})


# Ten steps of examples/arithmetic-smollm2.yaml on two CPU cores, as recorded.
DEMO = {
    "reward": [0.39, 0.55, 0.58, 0.73, 0.67, 0.80, 0.66, 0.94, 0.86, 0.83],
    "clip_fraction/mean": [0.048, 0.087, 0.113, 0.138, 0.078, 0.021, 0.062, 0.031, 0.031, 0.047],
    "p/mean": [0.972, 0.948, 0.933, 0.918, 0.953, 0.987, 0.968, 0.981, 0.981, 0.972],
    "ess/mean": [0.985, 0.990, 0.990, 0.987, 0.994, 0.995, 0.973, 0.997, 0.998, 0.994],
    "entropy": [0.534] * 5 + [0.171] * 5,  # means of five steps
}


def test_a_real_run_that_learns_is_healthy_until_its_problems_are_solved() -> None:
    assert {verdict(judged({name: values[:n] for name, values in DEMO.items()})) for n in (5, 8, 10)} == {
        frozenset({("healthy", "ok")})
    }
    solved = judged({**DEMO, "frac_reward_zero_std": [0.3] * 5 + [0.78] * 5})
    assert [sentence(one).partition(":")[0] for one in solved.findings] == ["watch"]
    assert "78 % of groups had equal rewards over 5 steps (6 to 10) at a mean reward of 0.82" in sentence(
        solved.findings[0]
    )


@pytest.mark.parametrize("steps", [0, RECENT - 1])
def test_too_few_steps_say_so(steps: int) -> None:
    state = judged({"clip_fraction/mean": [0.9] * steps})
    assert verdict(state) == {("too_few_steps", "ok")}
    assert state.findings[0].message.startswith(f"{steps} of the 5 steps")
    assert (state.first_step, state.last_step) == ((1, steps) if steps else (None, None))


def test_completions_that_never_end_are_told_at_the_first_step() -> None:
    finding = found({"completions/clipped_ratio": [1.0]})["never_ends"]
    assert finding.level == "bad"
    assert finding.message.startswith("100 % of completions or more ran to max_new_tokens in step 1")
    assert "cut_off" not in found({"completions/clipped_ratio": [1.0] * 8})
    assert set(found({"completions/clipped_ratio": [1.0] * 7 + [0.9]})) == {"cut_off"}
    assert set(found({"completions/clipped_ratio": [0.9]})) == {"too_few_steps"}


def test_a_peak_speaks_from_the_first_step() -> None:
    assert verdict(judged({"sampling/sampling_logp_difference/max": [5.0]})) == {("mismatch_token", "bad")}


def test_the_worst_finding_is_first_and_gives_the_level() -> None:
    state = judged({"clip_fraction/mean": [0.2] * 6, "frac_reward_zero_std": [1.0] * 6})
    assert [(one.code, one.level) for one in state.findings] == [("no_spread", "bad"), ("clipping", "watch")]
    assert state.level == "bad"


def test_what_is_older_than_the_window_is_forgotten() -> None:
    state = judged({"entropy": [*[50.0] * 5, *[1.0] * WINDOW]})
    assert (state.first_step, state.last_step, state.level) == (6, 25, "ok")


def test_short_histories_are_no_fall_and_no_spike() -> None:
    assert judged({"entropy": [9.0, *[1.0] * 7], "grad_norm": [1.0] * 8 + [99.0]}).level == "ok"
