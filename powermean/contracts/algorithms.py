"""The policy objectives that a job can choose: one small model each, distinguished by `name`.

Ranges in log space (`clip_*`) bound the log importance ratio: 0.4 keeps the ratio in (e^-0.4, e^0.4).
Ranges in ratio space (`epsilon_*`) bound the ratio itself: 0.2 keeps it in (1 - 0.2, 1 + 0.2).
docs/pmpo.md explains each field, its source, and which choices are the paper's and which are ours.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from powermean.contracts.base import conflict
from powermean.contracts.renaming import RenamedFields

# The kernel clamps log-ratios to this, so a wider clip range would never bind.
LOG_RATIO_LIMIT = 20.0

LogBound = Annotated[StrictFloat, Field(gt=0, le=LOG_RATIO_LIMIT)]
LowEpsilon = Annotated[StrictFloat, Field(gt=0, lt=1)]
HighEpsilon = Annotated[StrictFloat, Field(gt=0, le=100)]
Exponent = Annotated[StrictFloat, Field(ge=-8, le=8)]


class _Objective(RenamedFields):
    """Fields of every objective."""

    beta: StrictFloat = Field(
        0.0, ge=0, le=10, description="Weight of the KL to the initial model (k3, token mean)."
    )
    kl_target: StrictFloat | None = Field(
        None,
        gt=0,
        le=100,
        description="KL that beta is adapted to, in nats a token; beta is then its start. null: beta stays.",
    )
    kl_horizon: StrictInt = Field(
        10_000, ge=1, le=10**9, description="Trajectories over which beta adapts; fewer: faster."
    )
    entropy_coefficient: StrictFloat = Field(
        0.0, ge=0, le=10, description="Weight of the policy's mean token entropy, added to the objective."
    )
    importance_sampling_correction: Literal["off", "token", "sequence", "sequence_mean"] = Field(
        "off",
        description="Truncated importance-sampling ratio trainer/engine: token scales each token's gradient; "
        "sequence (exp of the summed log-ratio) and sequence_mean (exp of its mean) scale the loss.",
    )
    importance_sampling_clip_max: StrictFloat = Field(
        2.0, ge=1, le=100, description="Importance-sampling ratios are truncated at this value."
    )

    @model_validator(mode="after")
    def _target_of_a_penalty(self) -> Self:
        if self.kl_target is not None and self.beta == 0:
            why = "beta is 0 where it starts, and stays so: give beta too, e.g. 0.05"
            raise conflict(("kl_target",), why, self.kl_target)
        return self


class _LogClipped(_Objective):
    """A token clip given in log space."""

    clip_low: LogBound = Field(
        0.4, description="Tokens with log-ratio below -clip_low and A < 0 have no gradient."
    )
    clip_high: LogBound = Field(
        0.4, description="Tokens with log-ratio above clip_high and A > 0 have no gradient."
    )


class _RatioClipped(_Objective):
    """A clip given in ratio space."""

    epsilon_low: LowEpsilon = Field(0.2, description="Lower end of the ratio's range is 1 - epsilon_low.")
    epsilon_high: HighEpsilon = Field(0.2, description="Upper end of the ratio's range is 1 + epsilon_high.")


class Pmpo(_LogClipped):
    """Power mean with p per trajectory from clip-aware ESS (2601.22521, reconstructed from the abstract)."""

    name: Literal["pmpo"] = "pmpo"
    ess_target: Literal["interpolate", "absolute", "square_root"] = Field(
        "interpolate",
        description="From clip fraction f to target ESS: interpolate from N(1) to 1; absolute from 1/T to "
        "1 (a control); square_root sets p = sqrt(1 - f) without an ESS (a control).",
    )
    clip_fraction: Literal["active", "outside"] = Field(
        "active",
        description="Which tokens count as clipped: those whose clip binds, or all outside the range.",
    )
    clip_fraction_full: StrictFloat = Field(
        1.0, gt=0, le=1, description="Clip fraction f at which p is 0; a smaller value makes p react more."
    )
    ess_clip_range: tuple[LogBound, LogBound] | None = Field(
        None,
        description="Log-space range (low, high) used only to measure f; null uses the loss's own.",
    )


class Grpo(_RatioClipped):
    """Arithmetic mean of a trajectory's token ratios (p = 1), mean over trajectories (arXiv 2402.03300)."""

    name: Literal["grpo"] = "grpo"


class Gmpo(_LogClipped):
    """Geometric mean of token ratios (p = 0), token clip in log space (arXiv 2507.20673)."""

    name: Literal["gmpo"] = "gmpo"


class PowerMean(_LogClipped):
    """Power mean with one fixed exponent for every trajectory (a control; 1 is GRPO's mean, 0 GMPO's)."""

    name: Literal["power_mean"] = "power_mean"
    p: Exponent = Field(description="The exponent; negative values weigh small ratios most.")


class Holder(_RatioClipped):
    """Exponent annealed linearly over training, sequence clip after the mean (HölderPO, arXiv 2605.12058)."""

    name: Literal["holder"] = "holder"
    p_start: Exponent = Field(2.0, description="Exponent at the first step.")
    p_end: Exponent = Field(-2.0, description="Exponent at the last step.")


class Apmpo(_Objective):
    """One exponent per batch from its mean reward, and an adaptive token clip (APMPO, arXiv 2605.04066)."""

    name: Literal["apmpo"] = "apmpo"
    reward_decay: StrictFloat = Field(
        0.8, ge=0, le=10, description="p = exp(-reward_decay * mean reward), clamped to [0, 1]."
    )
    epsilon_base: StrictFloat = Field(0.2, gt=0, lt=1, description="Clip range at a mean reward of 0.")
    epsilon_amplitude: StrictFloat = Field(
        0.2,
        ge=0,
        lt=1,
        description="Clip range is epsilon_base + epsilon_amplitude * tanh(mean / (std + delta)).",
    )
    delta: StrictFloat = Field(
        1e-4, gt=0, le=1, description="Keeps mean / std finite when all rewards are equal."
    )

    @model_validator(mode="after")
    def _range_stays_valid(self) -> "Apmpo":
        if self.epsilon_base + self.epsilon_amplitude >= 1:
            raise ValueError(
                "epsilon_base + epsilon_amplitude must be below 1: the range's lower end is positive"
            )
        if self.epsilon_amplitude > self.epsilon_base:
            raise ValueError("epsilon_amplitude must not exceed epsilon_base, or the range becomes negative")
        return self


class Gspo(_RatioClipped):
    """Sequence-level ratio (p = 0) with a narrow sequence clip (arXiv 2507.18071)."""

    name: Literal["gspo"] = "gspo"
    epsilon_low: LowEpsilon = Field(3e-4, description="Lower end of the sequence ratio is 1 - epsilon_low.")
    epsilon_high: HighEpsilon = Field(
        4e-4, description="Upper end of the sequence ratio is 1 + epsilon_high."
    )


class DrGrpo(_RatioClipped):
    """Token sum over a constant, advantage without the standard deviation (arXiv 2503.20783)."""

    name: Literal["dr_grpo"] = "dr_grpo"


class Dapo(_RatioClipped):
    """Token mean over the batch, wider upper clip, groups without spread dropped (arXiv 2503.14476)."""

    name: Literal["dapo"] = "dapo"
    epsilon_high: HighEpsilon = Field(0.28, description="Upper end of the ratio's range is 1 + epsilon_high.")
    sampling_rounds: StrictInt = Field(
        10,
        ge=1,
        le=100,
        description="Most rounds of prompts_per_step prompts that a step samples to get as many groups with "
        "spread (verl's max_num_gen_batches: 10); 1 samples once and drops groups without spread.",
    )
    overlong_buffer: StrictInt = Field(
        0,
        ge=0,
        le=32768,
        description="Number of tokens before max_new_tokens over which the length penalty grows; 0 is off.",
    )
    overlong_penalty: StrictFloat = Field(
        1.0, ge=0, le=10, description="Penalty at max_new_tokens, subtracted from the reward."
    )


class Cispo(_Objective):
    """Clipped, detached ratio times A times log pi; no token loses its gradient (arXiv 2506.13585)."""

    name: Literal["cispo"] = "cispo"
    ratio_cap: StrictFloat = Field(
        5.0, gt=1, le=1000, description="Cap of the importance ratio itself (not of its distance from 1)."
    )


AlgorithmSpec = Annotated[
    Pmpo | Grpo | Gmpo | PowerMean | Holder | Apmpo | Gspo | DrGrpo | Dapo | Cispo,
    Field(discriminator="name"),
]
