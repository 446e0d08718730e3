"""Limits that end a job by rule, and the rule about a metric: `eval/reward >= 0.9 for 3`."""

import math
import re
from dataclasses import dataclass
from difflib import get_close_matches
from operator import ge, gt, le, lt
from typing import Annotated, Literal, cast

from pydantic import AfterValidator, Field, StrictFloat, StrictInt

from powermean.contracts.base import Contract
from powermean.contracts.metrics import METRICS

Comparison = Literal[">=", ">", "<=", "<"]
MOST_VALUES = 1000
MOST_COMPARED = 80  # characters of a name that may be misspelt: comparing takes time that grows with them
MEASURED_LATER = ("time/checkpoint",)  # a rule may end the job instead of saving the checkpoint
_COMPARES = {">=": ge, ">": gt, "<=": le, "<": lt}
_RULE = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=|>|<)\s*([^\s<>=]+)(?:\s+for\s+(\d{1,6}))?\s*", re.ASCII)


@dataclass(frozen=True)
class StopRule:
    """A metric of whole steps that keeps to one side of a bound for some values in a row."""

    metric: str
    comparison: Comparison
    bound: float
    values: int = 1

    def holds(self, value: float) -> bool:
        return bool(_COMPARES[self.comparison](value, self.bound))

    def __str__(self) -> str:
        tail = f" for {self.values}" if self.values > 1 else ""
        return f"{self.metric} {self.comparison} {self.bound:g}{tail}"


def metric_objection(metric: str) -> str | None:
    """Why a step can't be judged by the metric; None where it can."""
    names = [name for name, info in METRICS.items() if info.level == "step"]
    if metric not in names:
        meant = [] if metric in METRICS else get_close_matches(metric[:MOST_COMPARED], names, n=1)
        told = f"did you mean {meant[0]}?" if meant else "eval/reward and reward are two, and"
        why = " (it is measured in each update)" if metric in METRICS else ""
        return f"no metric of whole steps is called {metric}{why}: {told} GET /v1/metric-names lists all"
    if metric in MEASURED_LATER:
        return f"{metric} is only measured after its step was judged: choose another metric"
    return None


def read_stop_rule(text: str) -> StopRule:
    """The rule that the text says. Raises ValueError: what is wrong, and how to write it."""
    found = _RULE.fullmatch(text)
    if found is None:
        raise ValueError(
            "not a rule: write METRIC >= NUMBER, with >=, >, <= or <, and `for N` if N values in a row must "
            "do so, e.g. eval/reward >= 0.9 for 3"
        )
    metric, comparison, number, values = found.groups()
    if why := metric_objection(metric):
        raise ValueError(why)
    try:
        bound = float(number)
    except ValueError:
        raise ValueError(f"{number} is not a number") from None
    if not math.isfinite(bound):
        raise ValueError(f"{number} is never reached: give a finite number")
    count = int(values or 1)
    if not 1 <= count <= MOST_VALUES:
        raise ValueError(f"`for {count}` must lie between 1 and {MOST_VALUES}")
    return StopRule(metric, cast(Comparison, comparison), bound, count)


def _readable(text: str) -> str:
    read_stop_rule(text)
    return text


class LimitSpec(Contract):
    """When a job ends before its last step: it finishes with its model. A stalled attempt is tried again."""

    wall_hours: StrictFloat | None = Field(
        None,
        gt=0,
        le=100_000,
        description="Hours of running, over all attempts; waiting and pauses are free.",
    )
    gpu_hours: StrictFloat | None = Field(
        None, gt=0, le=10_000_000, description="Hours times GPUs that its attempts held."
    )
    tokens: StrictInt | None = Field(
        None, ge=1, le=10**15, description="Completion tokens sampled in training."
    )
    stop_when: Annotated[str, Field(max_length=200), AfterValidator(_readable)] | None = Field(
        None,
        description="A metric's value, and how many in a row must have it: eval/reward >= 0.9 for 3.",
    )
    stall_factor: StrictFloat | None = Field(
        None,
        ge=2,
        le=1000,
        description="An attempt without a step for so many times its usual time is ended and tried again.",
    )
