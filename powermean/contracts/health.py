"""What the last steps of a run say about it, in plain words."""

from typing import Literal

from pydantic import Field

from powermean.contracts.base import Contract

Level = Literal["ok", "watch", "bad"]


class Finding(Contract):
    """One thing seen in the numbers. docs/health.md says what each code means and when it is given."""

    code: str = Field(description="Which rule, or `healthy`, or `too_few_steps`.")
    level: Level
    message: str = Field(description="What was seen, with the numbers and the steps.")
    remedy: str = Field("", description="What to change in the spec, and in which direction.")


class JobHealth(Contract):
    """All findings, the worst first; `level` is that of the worst. There is always at least one finding."""

    level: Level
    first_step: int | None = Field(description="First of the steps looked at; null when there are none.")
    last_step: int | None = Field(description="Last of the steps looked at; null when there are none.")
    findings: tuple[Finding, ...]
