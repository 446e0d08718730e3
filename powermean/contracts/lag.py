"""What the objective makes of trajectories by their lag: where PMPO departs from GRPO as data grows stale."""

from pydantic import Field

from powermean.contracts.base import Contract


class LagNumbers(Contract):
    """Means over the trajectories of one lag, as one of their updates saw them; null where undefined."""

    defined: int = Field(ge=0, description="Trajectories with a p.")
    p: float | None = Field(None, description="Mean exponent of those.")
    p_q10: float | None = Field(None, description="10 % quantile of p.")
    p_median: float | None = Field(None, description="Median of p.")
    p_q90: float | None = Field(None, description="90 % quantile of p.")
    ess: float | None = Field(None, description="Mean N(p).")
    ess_at_1: float | None = Field(None, description="Mean N(1): what GRPO's weights would have.")
    clip_fraction: float | None = Field(None, description="Mean share of tokens whose clip binds.")


class LagRow(Contract):
    """All trajectories of one lag. Means are over trajectories, of the values that are known."""

    lag: int = Field(description="Weight versions that the trajectories are behind their step's own.")
    trajectories: int = Field(ge=1, description="Trajectories with tokens.")
    mixed: int = Field(ge=0, description="Of those: whose tokens several weight versions made.")
    tokens: int = Field(ge=1, description="Their completion tokens.")
    sampling_kl: float | None = Field(None, description="Mean KL(rollout || trainer), nats a token.")
    token_weight: float | None = Field(
        None, description="Mean importance weight pi_old / pi_rollout of a token, before truncation."
    )
    sampler_weight: float | None = Field(None, description="Mean truncated weight that acted; null if off.")
    first: LagNumbers = Field(description="In the first update that had the trajectory.")
    last: LagNumbers = Field(description="In the last update that had it.")


class JobLag(Contract):
    """Answer to GET /v1/jobs/{id}/lag. Without trajectories the steps are null."""

    first_step: int | None = Field(description="First step of the window that has trajectories.")
    last_step: int | None = Field(description="Last step of the window that has trajectories.")
    rows: tuple[LagRow, ...] = Field(description="By lag, ascending; no row for a lag that did not occur.")

    @property
    def stale(self) -> bool:
        """Whether anything was trained on that older weights made."""
        return any(row.lag > 0 for row in self.rows)
