"""Rules about metrics, as laws and as errors."""

import math
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from powermean.contracts.job import JobSpec
from powermean.contracts.limits import MEASURED_LATER, LimitSpec, StopRule, read_stop_rule
from powermean.contracts.metrics import METRICS
from tests.support.service_driver import example_spec

STEP_METRICS = sorted({name for name, info in METRICS.items() if info.level == "step"} - set(MEASURED_LATER))
BOUNDS = st.floats(allow_nan=False, allow_infinity=False)
SPACES = st.text(" \t", max_size=3)


@given(
    st.sampled_from(STEP_METRICS), st.sampled_from([">=", ">", "<=", "<"]), BOUNDS, st.integers(1, 1000),
    SPACES, SPACES, SPACES,
)  # fmt: skip
def test_a_rule_is_read_whatever_space_is_around_its_parts(
    metric: str, comparison: str, bound: float, values: int, a: str, b: str, c: str
) -> None:
    text = f"{a}{metric}{b}{comparison}{c}{bound!r} for {values}{a}"
    assert read_stop_rule(text) == StopRule(metric, comparison, bound, values)  # type: ignore[arg-type]


@given(st.sampled_from(STEP_METRICS), st.sampled_from([">=", "<"]), st.integers(-999, 999), st.integers(1, 9))
def test_a_rule_is_read_back_from_what_is_said_of_it(
    metric: str, comparison: str, n: int, values: int
) -> None:
    rule = StopRule(metric, comparison, n / 8, values)  # type: ignore[arg-type]
    assert read_stop_rule(str(rule)) == rule


@given(st.text(max_size=40))
def test_any_other_text_is_an_error_in_words(text: str) -> None:
    with suppress(ValueError):
        assert read_stop_rule(text).metric in STEP_METRICS


@given(BOUNDS, BOUNDS)
def test_of_two_opposite_rules_exactly_one_holds(bound: float, value: float) -> None:
    for one, other in ((">=", "<"), (">", "<=")):
        rules = [StopRule("reward", sign, bound) for sign in (one, other)]  # type: ignore[arg-type]
        assert [rule.holds(value) for rule in rules].count(True) == 1
    assert not StopRule("reward", ">=", bound).holds(math.nan)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not a rule: write METRIC >= NUMBER"),
        ("eval/reward", "not a rule"),
        ("eval/reward = 0.9", "not a rule"),
        ("eval/reward >= 0.9 for", "not a rule"),
        ("eval/reward >= 0.9 for three", "not a rule"),
        ("eval/reward >= 0.9 and more", "not a rule"),
        ("eval/rewards >= 0.9", "no metric of whole steps is called eval/rewards"),
        ("loss < 0.1", "no metric of whole steps is called loss"),
        ("time/checkpoint > 60", "time/checkpoint is only measured after its step was judged"),
        ("eval/reward >= high", "high is not a number"),
        ("eval/reward >= inf", "inf is never reached"),
        ("eval/reward >= 0.9 for 0", "`for 0` must lie between 1 and 1000"),
        ("eval/reward >= 0.9 for 5000", "`for 5000` must lie"),
    ],
)
def test_what_is_wrong_with_a_rule_is_said_at_its_field(text: str, why: str) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(example_spec(limits={"stop_when": text}))
    (error,) = refused.value.errors()
    assert error["loc"] == ("limits", "stop_when")
    assert why in error["msg"]


def test_the_example_reads_as_it_says() -> None:
    rule = read_stop_rule("eval/reward >= 0.9 for 3")
    assert rule == StopRule("eval/reward", ">=", 0.9, 3)
    assert LimitSpec(stop_when="reward>=.5").stop_when == "reward>=.5"


@pytest.mark.parametrize(
    ("limits", "field"),
    [
        ({"wall_hours": 0.0}, "wall_hours"),
        ({"tokens": 0}, "tokens"),
        ({"gpu_hours": 1.0}, "gpu_hours"),  # the spec asks for no GPU
        ({"stall_factor": 1.5}, "stall_factor"),
        ({"days": 1}, "days"),
    ],
)
def test_a_limit_that_makes_no_sense_is_named(limits: dict[str, object], field: str) -> None:
    with pytest.raises(ValidationError) as refused:
        JobSpec.model_validate(example_spec(limits=limits))
    assert refused.value.errors()[0]["loc"] == ("limits", field)
