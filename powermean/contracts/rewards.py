"""How a completion is graded. `kind: x` is graded by `grade` in trainer/rewards/x.py."""

import re
from typing import Annotated, Literal

from pydantic import Field, StrictBool, StrictFloat, field_validator, model_validator

from powermean.contracts.base import Contract


class _Reward(Contract):
    """What every reward has."""

    timeout_s: StrictFloat = Field(
        5.0,
        gt=0,
        le=60,
        description="Time limit for one completion, in seconds; beyond it the reward is 0.",
    )


class ExactMatch(_Reward):
    """1 when the text extracted from the completion equals the reference answer, else 0."""

    kind: Literal["exact_match"] = "exact_match"
    extract: Literal["all", "first_line", "last_line", "last_number", "pattern"] = Field(
        "first_line",
        description="Which part of the completion is compared. `pattern` takes the last match of `pattern`.",
    )
    pattern: str | None = Field(
        None,
        max_length=500,
        description="Regular expression for `extract: pattern`; group 1 if it has one.",
    )
    ignore_case: StrictBool = Field(False, description="Ignore case when comparing.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except (
                re.error,
                OverflowError,
                RecursionError,
            ) as error:  # the last two: `a{4294967296}`, `((((`
                raise ValueError(f"not a regular expression that can be used: {error}") from error
        return value

    @model_validator(mode="after")
    def _pattern_is_used(self) -> "ExactMatch":
        if self.extract == "pattern" and self.pattern is None:
            raise ValueError("extract is pattern: give the regular expression as pattern")
        if self.extract != "pattern" and self.pattern is not None:
            raise ValueError(f"pattern would not be used with extract {self.extract}: leave one of them out")
        return self


class MathVerify(_Reward):
    """1 when math-verify finds the completion's final expression equal to the reference answer, else 0."""

    kind: Literal["math_verify"] = "math_verify"


RewardSpec = Annotated[ExactMatch | MathVerify, Field(discriminator="kind")]
