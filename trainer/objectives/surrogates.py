"""What an objective averages: the power mean of token ratios, or CISPO's detached ratios.

A surrogate gives each trajectory's loss and the gradient with respect to its log-ratios, both in closed form.
"""

from dataclasses import dataclass, replace
from math import log
from typing import Protocol

import torch
from torch import Tensor

from trainer.objectives.clipping import ClipFractions, ClipRange, clip_fractions, one_sided
from trainer.objectives.effective_sample_size import evaluate
from trainer.objectives.exponents import ExponentInputs, ExponentRule, Exponents
from trainer.objectives.power_mean import CentredTokens, PowerMean, centre, power_mean


@dataclass(frozen=True)
class BatchFacts:
    """Counts over the *whole* minibatch, so that its micro-batches' losses add up to its own."""

    trajectories: int  # with at least one token
    tokens: int
    max_tokens: int  # L_max: the most tokens a completion may have
    reward_std: float | None = None  # of the batch's rewards; only apmpo asks for it


@dataclass(frozen=True)
class MicroBatch:
    """A micro-batch, detached and cleaned."""

    raw: Tensor  # [B, T] log-ratios, 0 on padding
    x: Tensor  # [B, T] the same within +-20
    mask: Tensor  # [B, T] 1.0 on completion tokens, 0.0 elsewhere
    tokens: Tensor  # [B] completion tokens, of x's dtype
    lowest: Tensor  # [B] smallest x of the trajectory's tokens, 0 without tokens
    highest: Tensor  # [B] largest
    advantages: Tensor  # [B] float64
    weight: Tensor  # [B] w_i float64, 0 for a trajectory without tokens
    batch: BatchFacts

    @property
    def trained(self) -> Tensor:
        """Bool [B]: the trajectory has tokens and an advantage."""
        return (self.tokens > 0) & (self.advantages != 0)


@dataclass(frozen=True)
class UpdateContext:
    """What changes from update to update."""

    progress: float
    mean_reward: float | None


@dataclass(frozen=True)
class SurrogateOutput:
    """The trajectories' part of the loss."""

    loss: Tensor  # [B] float64, weighted by w_i
    gradient: Tensor  # [B, T] d loss / d x
    weights: Tensor  # [B, T] W_t
    passes: Tensor  # [B, T] I_t: 1.0 where the gradient passes, 0.0 where the clip took it away
    records: dict[str, Tensor]  # [B] float64


class Surrogate(Protocol):
    """Loss and gradient of a micro-batch."""

    def __call__(self, micro: MicroBatch, setting: UpdateContext) -> SurrogateOutput: ...

    def at(self, p: Tensor, micro: MicroBatch, setting: UpdateContext) -> Tensor:
        """The gradient [B, T] with the exponents p [B] given."""
        ...


class ClipRule(Protocol):
    """Gives the clip range of an update."""

    def __call__(self, batch: BatchFacts, setting: UpdateContext) -> ClipRange: ...


@dataclass(frozen=True)
class ConstantClip:
    """The same range all through training."""

    bounds: ClipRange

    def __call__(self, batch: BatchFacts, setting: UpdateContext) -> ClipRange:
        return self.bounds


@dataclass(frozen=True)
class RewardAdaptiveClip:
    """1 +- (base + amplitude tanh(mean / (std + delta))) of the batch's rewards (APMPO, arXiv 2605.04066)."""

    base: float
    amplitude: float
    delta: float

    def __call__(self, batch: BatchFacts, setting: UpdateContext) -> ClipRange:
        if setting.mean_reward is None or batch.reward_std is None:
            raise ValueError("this clip needs the mean and the standard deviation of the batch's rewards")
        signal = torch.tensor(setting.mean_reward / (batch.reward_std + self.delta), dtype=torch.float64)
        # tanh near -1 with amplitude = base would leave no range at all
        epsilon = max(self.base + self.amplitude * float(torch.tanh(signal)), 1e-6)
        return ClipRange.from_ratio(epsilon, epsilon)


@dataclass(frozen=True)
class _Mean:
    """The power mean of a micro-batch and its part of the loss."""

    mean: PowerMean
    loss: Tensor  # [B]
    gradient: Tensor  # [B, T]
    passes: Tensor  # [B, T] I_t


@dataclass(frozen=True)
class PowerMeanSurrogate:
    """- w_i A_i M_p, clipped by token before the mean or by sequence after it."""

    exponent: ExponentRule
    clip: ClipRule
    by_sequence: bool = False

    def __call__(self, micro: MicroBatch, setting: UpdateContext) -> SurrogateOutput:
        bounds = self.clip(micro.batch, setting)
        clipped = self._clipped(micro, bounds)
        centred = centre(clipped, micro.mask, micro.tokens)
        fractions = clip_fractions(micro.x, micro.tokens, micro.advantages, bounds)
        exponents = self.exponent(
            ExponentInputs(
                x=micro.x,
                centred=centred,
                advantages=micro.advantages,
                fractions=fractions,
                trained=micro.trained,
                varied=self._varied(micro, bounds),
                progress=setting.progress,
                mean_reward=setting.mean_reward,
            )
        )
        used = torch.where(torch.isnan(exponents.p), 1.0, exponents.p)
        result = self._mean(micro, bounds, clipped, centred, used)
        if self.by_sequence:
            whole = micro.tokens.clamp(max=1)
            fractions = clip_fractions(result.mean.log_mean[:, None], whole, micro.advantages, bounds)
            exponents = replace(exponents, clip_fraction=fractions.active)
        return SurrogateOutput(
            loss=result.loss,
            gradient=result.gradient,
            weights=result.mean.weights,
            passes=result.passes,
            records=self._records(micro, centred, used, exponents, fractions, result.mean)
            | _clipped_ratio_records(micro, clipped, self._extremes(micro, bounds)),
        )

    def at(self, p: Tensor, micro: MicroBatch, setting: UpdateContext) -> Tensor:
        """Gradient [B, T] of the loss with the exponents p [B] given."""
        bounds = self.clip(micro.batch, setting)
        clipped = self._clipped(micro, bounds)
        return self._mean(micro, bounds, clipped, centre(clipped, micro.mask, micro.tokens), p).gradient

    def _clipped(self, micro: MicroBatch, bounds: ClipRange) -> Tensor:
        return micro.x if self.by_sequence else one_sided(micro.x, micro.advantages, bounds)

    def _varied(self, micro: MicroBatch, bounds: ClipRange) -> Tensor:
        """Bool [B]: two clipped ratios differ. The clip is monotone, so the extremes tell."""
        lowest, highest = self._extremes(micro, bounds)
        return highest > lowest

    def _extremes(self, micro: MicroBatch, bounds: ClipRange) -> tuple[Tensor, Tensor]:
        """Smallest and largest x~ [B]."""
        if self.by_sequence:
            return micro.lowest, micro.highest
        return (
            one_sided(micro.lowest, micro.advantages, bounds),
            one_sided(micro.highest, micro.advantages, bounds),
        )

    def _mean(
        self, micro: MicroBatch, bounds: ClipRange, clipped: Tensor, centred: CentredTokens, p: Tensor
    ) -> _Mean:
        mean = power_mean(centred, p.to(clipped.dtype), max(self.exponent.largest, 1.0))
        log_mean = mean.log_mean.double()
        passes = 1 - torch.sign(micro.raw - clipped).abs_()
        if self.by_sequence:
            held = one_sided(log_mean, micro.advantages, bounds)
            passes *= (held == log_mean)[:, None]
            log_mean = held
        loss = micro.weight * -micro.advantages * log_mean.exp()
        gradient = (mean.weights * loss.to(clipped.dtype)[:, None]).mul_(passes)
        return _Mean(mean=mean, loss=loss, gradient=gradient, passes=passes)

    def _records(
        self,
        micro: MicroBatch,
        centred: CentredTokens,
        used: Tensor,
        exponents: Exponents,
        fractions: ClipFractions,
        mean: PowerMean,
    ) -> dict[str, Tensor]:
        ess = mean.ess.double()
        at_1 = torch.where(used == 1, ess, exponents.ess_at_1)
        rows = (micro.trained & torch.isnan(at_1)).nonzero()[:, 0]
        if rows.numel():
            z = centred.z if rows.numel() == len(at_1) else centred.z[rows]
            at_1[rows] = 1 - evaluate(z, centred.tokens[rows].double(), None).deficit
        undefined = torch.full_like(ess, torch.nan)
        return _ratio_records(micro, fractions) | {
            "p": exponents.p,
            "ess": torch.where(micro.trained, ess, undefined),
            "ess_at_1": torch.where(micro.trained, at_1, undefined),
            "ess_target": torch.where(exponents.target_is_at_1, at_1, exponents.ess_target),
            "clip_fraction": torch.where(micro.trained, exponents.clip_fraction, undefined),
            "log_mean": torch.where(micro.tokens > 0, mean.log_mean.double(), undefined),
        }


@dataclass(frozen=True)
class DetachedRatioSurrogate:
    """CISPO (arXiv 2506.13585): - w_i A_i sg(min(r_t, cap)) log pi_t, summed over the trajectory's tokens.

    log pi differs from x by the old log-prob, a constant: the gradient is CISPO's, the value is counted from
    it. There is no power mean, so p and the ESS are undefined, and W_t is the share of min(r_t, cap).
    """

    cap: float  # above 1

    def __call__(self, micro: MicroBatch, setting: UpdateContext) -> SurrogateOutput:
        ratio = micro.x.exp().clamp(max=self.cap) * micro.mask
        scale = (-micro.weight * micro.advantages / micro.tokens.clamp(min=1)).to(micro.x.dtype)[:, None]
        gradient = ratio * scale
        bounds = ClipRange(low=torch.inf, high=log(self.cap))
        fractions = clip_fractions(micro.x, micro.tokens, micro.advantages, bounds)
        undefined = torch.full_like(micro.weight, torch.nan)
        names = ("p", "ess", "ess_at_1", "ess_target", "log_mean")
        return SurrogateOutput(
            loss=(gradient * micro.x).sum(-1).double(),
            gradient=gradient,
            weights=ratio / ratio.sum(-1, keepdim=True).clamp(min=torch.finfo(ratio.dtype).tiny),
            passes=torch.ones_like(micro.mask),
            records=_ratio_records(micro, fractions)
            | _clipped_ratio_records(
                micro,
                micro.x.clamp(max=bounds.high) * micro.mask,
                (micro.lowest.clamp(max=bounds.high), micro.highest.clamp(max=bounds.high)),
            )
            | dict.fromkeys(names, undefined)
            | {"clip_fraction": torch.where(micro.trained, fractions.outside, undefined)},
        )

    def at(self, p: Tensor, micro: MicroBatch, setting: UpdateContext) -> Tensor:
        """The gradient does not depend on p."""
        return self(micro, setting).gradient


def _ratio_records(micro: MicroBatch, fractions: ClipFractions) -> dict[str, Tensor]:
    """Clip fractions, and the extremes and mean of the ratio exp(x), x within +-20; NaN without tokens."""
    some = micro.tokens > 0
    mean = 1 + torch.expm1(micro.x).sum(-1).double() / micro.tokens  # padding has x = 0 and adds nothing
    return {
        "clip_fraction_low": fractions.low,
        "clip_fraction_high": fractions.high,
        "clip_fraction_active": fractions.active,
        "clip_fraction_outside": fractions.outside,
        "ratio_min": torch.where(some, micro.lowest.double().exp(), torch.nan),
        "ratio_mean": torch.where(some, mean, torch.nan),
        "ratio_max": torch.where(some, micro.highest.double().exp(), torch.nan),
    }


def _clipped_ratio_records(
    micro: MicroBatch, clipped: Tensor, extremes: tuple[Tensor, Tensor]
) -> dict[str, Tensor]:
    """The extremes and mean of exp(x~), x~ [B, T] after the token clip (a sequence clip changes no token)."""
    some = micro.tokens > 0
    mean = 1 + torch.expm1(clipped).sum(-1).double() / micro.tokens
    lowest, highest = (end.double().exp() for end in extremes)
    return {
        "ratio_clipped_min": torch.where(some, lowest, torch.nan),
        "ratio_clipped_mean": torch.where(some, mean, torch.nan),
        "ratio_clipped_max": torch.where(some, highest, torch.nan),
    }
