"""p and what it came from, by trajectory: how often each pair of clip fraction and p occurred."""

from typing import Literal

from pydantic import Field

from powermean.contracts.base import Contract


class ExponentRow(Contract):
    """Trajectories of a step whose last update saw the same p, clip fraction and sign of the advantage."""

    step: int
    p: float = Field(description="Rounded to 3 decimals.")
    clip_fraction: float = Field(description="f, rounded to 4 decimals.")
    advantage: Literal[-1, 1] = Field(description="Its sign; without an advantage there is no p.")
    trajectories: int = Field(ge=1, description="How many.")


class JobExponents(Contract):
    """Answer to GET /v1/jobs/{id}/exponents."""

    steps: tuple[int, ...] = Field(description="Steps of the window that have trajectories, ascending.")
    rows: tuple[ExponentRow, ...] = Field(description="By step; trajectories without a p are left out.")
