"""The health of a run, judged by its last steps, in plain words."""

from typing import Literal

from pydantic import Field

from powermean.contracts.base import Contract

Level = Literal["ok", "watch", "bad"]


class Finding(Contract):
    """One observation about the numbers. docs/health.md explains each code and its threshold."""

    code: str = Field(description="Which rule, or `healthy`, or `too_few_steps`.")
    level: Level
    message: str = Field(description="What was seen, with the numbers and the steps.")
    remedy: str = Field("", description="What to change in the spec, and in which direction.")


class JobHealth(Contract):
    """All findings, the worst first; `level` is that of the worst. There is always at least one finding."""

    level: Level
    first_step: int | None = Field(description="First step considered; null if there are none.")
    last_step: int | None = Field(description="Last step considered; null if there are none.")
    findings: tuple[Finding, ...]
