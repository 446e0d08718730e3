"""What an objective averages: the power mean of token ratios, or CISPO's detached ratios.

A surrogate gives each trajectory's loss and the gradient with respect to its log-ratios, both in closed form.
"""

from dataclasses import dataclass
from math import log
from typing import Protocol

import torch
from torch import Tensor

from trainer.objectives.clipping import ClipFractions, ClipRange, clip_fractions, one_sided
from trainer.objectives.effective_sample_size import evaluate
from trainer.objectives.exponents import ExponentInputs, ExponentRule
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
    """The trajectories' part of the loss, weighted by w_i."""

    loss: Tensor  # [B] float64
    gradient: Tensor  # [B, T] d loss / d x
    weights: Tensor  # [B, T] W_t
    passes: Tensor  # [B, T] I_t: 1.0 where the gradient passes, 0.0 where the clip took it away
    records: dict[str, Tensor]  # [B] float64
    at_1_and_0: tuple[Tensor, Tensor] | None  # the gradient [B, T] that p = 1 and p = 0 would give


class Surrogate(Protocol):
    """Loss and gradient of a micro-batch."""

    def __call__(self, micro: MicroBatch, setting: UpdateContext) -> SurrogateOutput: ...


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
    loss: Tensor  # [B] float64
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
        token_bounds = None if self.by_sequence else bounds
        clipped = one_sided(micro.x, micro.advantages, token_bounds)
        lowest, highest = (
            one_sided(ends, micro.advantages, token_bounds) for ends in (micro.lowest, micro.highest)
        )
        centred = centre(clipped, micro.mask, micro.tokens)
        fractions = clip_fractions(micro.x, micro.tokens, micro.advantages, bounds)

        def at(p: Tensor) -> _Mean:
            return self._mean(micro, bounds, clipped, centred, p)

        zeros = torch.zeros_like(micro.weight)
        arithmetic, geometric = at(zeros + 1), at(zeros)
        deficit_at_1 = evaluate(centred.z.double(), centred.tokens.double(), zeros + 1).deficit
        exponents = self.exponent(
            ExponentInputs(
                x=micro.x,
                centred=centred,
                advantages=micro.advantages,
                fractions=fractions,
                trained=micro.trained,
                varied=highest > lowest,  # the clip is monotone, so the extremes tell
                deficit_at_1=deficit_at_1,
                progress=setting.progress,
                mean_reward=setting.mean_reward,
            )
        )
        result = at(exponents.p.nan_to_num(1.0))
        clip_fraction = exponents.clip_fraction
        if self.by_sequence:
            whole = micro.tokens.clamp(max=1)
            fractions = clip_fractions(result.mean.log_mean[:, None], whole, micro.advantages, bounds)
            clip_fraction = fractions.active
        of_trained = {
            "ess": result.mean.ess,
            "ess_at_1": 1 - deficit_at_1,
            "clip_fraction": clip_fraction,
        }
        return SurrogateOutput(
            loss=result.loss,
            gradient=result.gradient,
            weights=result.mean.weights,
            passes=result.passes,
            records=_ratio_records(micro, fractions)
            | _clipped_ratio_records(micro, clipped, (lowest, highest))
            | {name: torch.where(micro.trained, value, torch.nan) for name, value in of_trained.items()}
            | {
                "p": exponents.p,
                "ess_target": exponents.ess_target,
                "log_mean": torch.where(micro.tokens > 0, result.mean.log_mean, torch.nan),
            },
            at_1_and_0=(arithmetic.gradient, geometric.gradient),
        )

    def _mean(
        self, micro: MicroBatch, bounds: ClipRange, clipped: Tensor, centred: CentredTokens, p: Tensor
    ) -> _Mean:
        mean = power_mean(centred, p, max(self.exponent.largest, 1.0))
        log_mean = mean.log_mean
        passes = 1 - torch.sign(micro.raw - clipped).abs_()
        if self.by_sequence:
            held = one_sided(log_mean, micro.advantages, bounds)
            passes *= (held == log_mean)[:, None]
            log_mean = held
        loss = micro.weight * -micro.advantages * log_mean.exp()
        gradient = (mean.weights * loss.to(clipped.dtype)[:, None]).mul_(passes)
        return _Mean(mean=mean, loss=loss, gradient=gradient, passes=passes)


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
            at_1_and_0=None,
        )


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
