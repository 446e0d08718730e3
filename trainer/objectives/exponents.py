"""Rules that choose the power-mean exponent p of each trajectory. No gradient passes through p."""

from dataclasses import dataclass
from math import exp
from typing import Literal, Protocol

import torch
from torch import Tensor

from trainer.objectives.clipping import ClipFractions, ClipRange, clip_fractions
from trainer.objectives.effective_sample_size import (
    absolute_deficit,
    interpolated_deficit,
    solve_exponent,
)
from trainer.objectives.power_mean import CentredTokens


@dataclass(frozen=True)
class ExponentInputs:
    """What a rule may look at."""

    x: Tensor  # [B, T] log-ratios within +-20, 0 on padding
    centred: CentredTokens  # of the clipped log-ratios
    advantages: Tensor  # [B]
    fractions: ClipFractions  # by the loss's own range
    trained: Tensor  # [B] bool: has tokens and A != 0
    varied: Tensor  # [B] bool: two of its clipped ratios differ
    deficit_at_1: Tensor  # [B] float64, 1 - N(1)
    progress: float  # share of the training done, in [0, 1]
    mean_reward: float | None


@dataclass(frozen=True)
class Exponents:
    """p and what it came from; all [B] float64, NaN where undefined."""

    p: Tensor
    clip_fraction: Tensor  # the one that drives p
    ess_target: Tensor


class ExponentRule(Protocol):
    """Chooses p [B]. `largest` bounds |p| whatever the data."""

    @property
    def largest(self) -> float: ...

    def __call__(self, situation: ExponentInputs) -> Exponents: ...


def _same(p: float, situation: ExponentInputs) -> Exponents:
    undefined = torch.full_like(situation.fractions.low, torch.nan)
    return Exponents(
        p=torch.where(situation.trained, p, undefined),
        clip_fraction=situation.fractions.active,
        ess_target=undefined,
    )


@dataclass(frozen=True)
class Fixed:
    """The same p for every trajectory."""

    p: float

    @property
    def largest(self) -> float:
        return abs(self.p)

    def __call__(self, situation: ExponentInputs) -> Exponents:
        return _same(self.p, situation)


@dataclass(frozen=True)
class Annealed:
    """p moves linearly from `start` to `end` over training (HölderPO, arXiv 2605.12058)."""

    start: float
    end: float

    @property
    def largest(self) -> float:
        return max(abs(self.start), abs(self.end))

    def __call__(self, situation: ExponentInputs) -> Exponents:
        return _same(self.start + (self.end - self.start) * situation.progress, situation)


@dataclass(frozen=True)
class RewardDriven:
    """One p per batch, exp(-decay * mean reward) (APMPO, arXiv 2605.04066), held in [0, 1] (ours)."""

    decay: float
    largest: float = 1.0

    def __call__(self, situation: ExponentInputs) -> Exponents:
        if situation.mean_reward is None:
            raise ValueError("this exponent rule needs the batch's mean reward")
        return _same(exp(min(0.0, -self.decay * situation.mean_reward)), situation)


@dataclass(frozen=True)
class ClipAware:
    """PMPO: the clip fraction sets a target ESS, p is where N(p) meets it (2601.22521, reconstructed)."""

    target: Literal["interpolate", "absolute", "square_root"]
    fraction: Literal["active", "outside"]
    full: float  # f1: the clip fraction at which p reaches 0
    measured_in: ClipRange | None  # range that only measures f; None is the loss's own
    largest: float = 1.0

    def __call__(self, situation: ExponentInputs) -> Exponents:
        fractions = self._fractions(situation)
        driving = fractions.active if self.fraction == "active" else fractions.outside
        driving = torch.where(situation.trained, driving, torch.nan)
        effective = (driving / self.full).clamp(max=1.0)
        varied = situation.trained & situation.varied
        # sqrt(1 - f) is the answer where f is 0 or 1, the solver's start in between, and a rule of its own
        p = torch.where(varied, (1 - effective).sqrt(), torch.nan)
        if self.target == "square_root":
            return Exponents(p, driving, torch.full_like(p, torch.nan))
        z, tokens = situation.centred.z.double(), situation.centred.tokens.double()
        if self.target == "interpolate":
            deficit = interpolated_deficit(effective, situation.deficit_at_1)
        else:
            deficit = absolute_deficit(effective, tokens)
        between = varied & (effective > 0) & (effective < 1)
        solved = solve_exponent(z, tokens, deficit, p.nan_to_num(1.0), between)
        return Exponents(
            p=torch.where(between, solved, p),
            clip_fraction=driving,
            ess_target=torch.where(varied, 1 - deficit, torch.nan),
        )

    def _fractions(self, situation: ExponentInputs) -> ClipFractions:
        if self.measured_in is None:
            return situation.fractions
        centred = situation.centred
        return clip_fractions(situation.x, centred.counts, situation.advantages, self.measured_in)
