"""The objective's numbers by staleness: where PMPO departs from GRPO as data ages."""

from pydantic import Field

from powermean.contracts.base import Contract
from powermean.contracts.renaming import RenamedFields


class StalenessNumbers(Contract):
    """Means over the trajectories of one staleness, as one update saw them; null if unknown."""

    defined: int = Field(ge=0, description="Trajectories with a p.")
    p: float | None = Field(None, description="Mean exponent of those.")
    p_q10: float | None = Field(None, description="10 % quantile of p.")
    p_median: float | None = Field(None, description="Median of p.")
    p_q90: float | None = Field(None, description="90 % quantile of p.")
    ess: float | None = Field(None, description="Mean N(p).")
    ess_at_1: float | None = Field(None, description="Mean N(1), the ESS of GRPO's weights.")
    clip_fraction: float | None = Field(None, description="Mean share of tokens whose clip binds.")


class StalenessRow(RenamedFields):
    """All trajectories of one staleness. Means are over trajectories, of the values that are known."""

    staleness: int = Field(description="How many weight versions the trajectories are behind their step's.")
    trajectories: int = Field(ge=1, description="Trajectories with tokens.")
    mixed: int = Field(ge=0, description="How many of those were sampled by more than one weight version.")
    tokens: int = Field(ge=1, description="Their completion tokens.")
    sampling_kl: float | None = Field(None, description="Mean KL(rollout || trainer), nats per token.")
    importance_sampling_ratio: float | None = Field(
        None, description="Mean importance-sampling ratio pi_old / pi_rollout of a token, before truncation."
    )
    applied_importance_sampling_ratio: float | None = Field(
        None, description="Mean truncated ratio that was applied; null if off."
    )
    first: StalenessNumbers = Field(description="In the first update that had the trajectory.")
    last: StalenessNumbers = Field(description="In the last update that had it.")


class JobStaleness(Contract):
    """Answer to GET /v1/jobs/{id}/staleness. Without trajectories the steps are null."""

    first_step: int | None = Field(description="First step of the window that has trajectories.")
    last_step: int | None = Field(description="Last step of the window that has trajectories.")
    rows: tuple[StalenessRow, ...] = Field(description="By staleness, ascending; only values that occurred.")

    @property
    def stale(self) -> bool:
        """Whether anything sampled by older weights was trained on."""
        return any(row.staleness > 0 for row in self.rows)
