"""The limits that the trainer judges at the end of each step: tokens, and a metric's values. Pure."""

from typing import NamedTuple

from powermean.contracts.limits import LimitSpec, read_stop_rule


class Judged(NamedTuple):
    """How many values in a row have kept to the rule, and the limit that is reached, in words."""

    streak: int
    reached: str | None


def judge(
    limits: LimitSpec, step: int, tokens: int, streak: int, measured: dict[str, float | None]
) -> Judged:
    """`tokens` sampled so far; `streak` before this step; `measured`: the step's numbers, by metric.

    A step that did not measure the rule's metric leaves the streak as it is; a number that is not finite
    (None) ends it.
    """
    rule = read_stop_rule(limits.stop_when) if limits.stop_when is not None else None
    if rule is not None and rule.metric in measured:
        value = measured[rule.metric]
        streak = streak + 1 if value is not None and rule.holds(value) else 0
    if limits.tokens is not None and tokens >= limits.tokens:
        return Judged(streak, f"limits.tokens: {tokens:,} of {limits.tokens:,} were sampled by step {step}")
    if rule is not None and streak >= rule.values:
        return Judged(streak, f"limits.stop_when: {rule}, at step {step}")
    return Judged(streak, None)
