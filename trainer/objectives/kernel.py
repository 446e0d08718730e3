"""The one kernel behind every objective: an algorithm is an advantage rule, a clip, an exponent rule, a
weight for each trajectory, and a filter on groups.

    L = - sum_i w_i A_i M_{p_i}(x~_i),      dL/dx_t = - w_i A_i M_{p_i} W_t(p_i) I_t

x~ is the one-sidedly clipped log-ratio and I_t is 0 where the clip binds (arXiv 2601.22521; clip as in GMPO,
ours for PMPO). Value and gradient are both written down in closed form, so that backward costs one
multiplication.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from powermean.contracts.algorithms import LOG_RATIO_LIMIT
from trainer.objectives.advantages import overlong_penalty
from trainer.objectives.reference_kl import BetaControl
from trainer.objectives.sampler_mismatch import WeightKind, raw_weights, truncated
from trainer.objectives.surrogates import BatchFacts, MicroBatch, Surrogate, UpdateContext

_ROUNDING = 1e-6  # of a gradient, in float32


def batch_facts(mask: Tensor, max_tokens: int | None = None, reward_std: float | None = None) -> BatchFacts:
    """Count a whole minibatch's mask [B, T]. Trajectories without tokens are not in the denominator."""
    tokens = mask.sum(-1)
    return BatchFacts(
        trajectories=int((tokens > 0).sum()),
        tokens=int(tokens.sum()),
        max_tokens=mask.shape[-1] if max_tokens is None else max_tokens,
        reward_std=reward_std,
    )


def finite_rows(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """Bool [B]: all log-ratios on completion tokens are finite. Drop the others before the loss."""
    return (torch.isfinite(log_ratio) | ~mask).all(-1)


@dataclass(frozen=True)
class LossOutput:
    """The loss of a micro-batch and what it saw of each trajectory. Only `loss` carries a gradient."""

    loss: Tensor  # scalar
    recorded_loss: Tensor  # scalar float64, without trajectories that overflow: one near 5e8 would hide all
    trajectories: dict[str, Tensor]  # name -> [B] float64, NaN where undefined
    token_weights: Tensor  # [B, T] W_t(p)
    passes: Tensor  # [B, T] I_t, 1.0 or 0.0
    distance: "Distance"  # of the gradient to GRPO's, with this clip

    @property
    def clipped(self) -> Tensor:
        """Bool [B, T]: completion tokens whose gradient the clip, or the limit of 20, took away."""
        return self.passes == 0


class _ClosedForm(torch.autograd.Function):
    """A scalar whose gradient with respect to the log-ratios is known."""

    @staticmethod
    def forward(ctx: Any, log_ratio: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = ctx.saved_tensors
        return gradient * upstream[0], None, None


@dataclass(frozen=True)
class Distance:
    """Squared norms, scalars float64, that add over micro-batches: of g_p - g_1, of g_0 - g_1 and of g_1."""

    to_grpo: Tensor | float = 0.0
    of_gmpo: Tensor | float = 0.0
    of_grpo: Tensor | float = 0.0

    def __add__(self, other: "Distance") -> "Distance":
        return Distance(
            self.to_grpo + other.to_grpo, self.of_gmpo + other.of_gmpo, self.of_grpo + other.of_grpo
        )

    @property
    def value(self) -> float | None:
        """d = |g_p - g_1| / |g_0 - g_1|: 0 is GRPO's gradient (with this clip), 1 GMPO's distance from it.

        None where those two agree but for rounding, as in a step's first update.
        """
        whole = float(self.of_gmpo)
        return None if whole <= _ROUNDING**2 * float(self.of_grpo) else (float(self.to_grpo) / whole) ** 0.5


@dataclass(frozen=True)
class Algorithm:
    """One objective, immutable. Build it from its spec with `catalogue.build_algorithm`."""

    name: str
    surrogate: Surrogate
    advantage: Callable[[Tensor, Tensor], Tensor]  # rewards [N], group [N] -> [N]
    weight: Callable[[Tensor, BatchFacts], Tensor]  # tokens [B] -> w_i [B] float64
    keep_group: Callable[[Tensor, Tensor], Tensor]  # rewards [N], group [N] -> bool [N]
    sampling_rounds: int = 1  # most rounds of prompts per step, until enough groups are kept
    overlong_buffer: int = 0
    overlong_penalty: float = 0.0
    beta: float = 0.0
    beta_control: BetaControl | None = None
    entropy_coefficient: float = 0.0
    importance_sampling_correction: WeightKind = "off"
    importance_sampling_clip_max: float = 2.0

    def shape_rewards(self, rewards: Tensor, lengths: Tensor, max_tokens: int) -> Tensor:
        """Rewards [N] with the penalty on long completions (dapo only; lengths [N] in tokens)."""
        penalty = overlong_penalty(lengths, max_tokens, self.overlong_buffer, self.overlong_penalty)
        return rewards.double() + penalty

    def advantages(self, rewards: Tensor, group: Tensor) -> Tensor:
        """A [N] float64 from rewards [N] and group ids [N]. Raises ValueError on non-finite rewards."""
        return self.advantage(rewards.double(), group)

    def keep(self, rewards: Tensor, group: Tensor) -> Tensor:
        """Bool [N]; False leaves the batch and its denominators. Judged on rewards before `shape_rewards`."""
        return self.keep_group(rewards.double(), group)

    def importance_sampling_ratio(
        self, old_log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor
    ) -> Tensor | None:
        """min(pi_old / pi_rollout, cap) for `loss`: [B, T], [B] or None, as the spec says."""
        raw = raw_weights(old_log_probs, sampler_log_probs, mask, self.importance_sampling_correction)
        return truncated(raw, self.importance_sampling_clip_max)

    def loss(
        self,
        log_ratio: Tensor,
        mask: Tensor,
        advantages: Tensor,
        batch: BatchFacts,
        progress: float = 0.0,
        mean_reward: float | None = None,
        importance_sampling_ratio: Tensor | None = None,
    ) -> LossOutput:
        """The loss of one micro-batch; over the micro-batches of `batch` the losses sum to the minibatch's.

        log_ratio [B, T] (nats, carries the gradient), mask [B, T] bool, advantages [B]; `progress` in [0, 1]
        of training; `mean_reward` of the batch. An importance-sampling ratio [B] scales the trajectory's
        loss, one of [B, T] only the gradient of its tokens. Log-ratios on completion tokens must be finite
        (`finite_rows`). Work is done in float32, or in float64 if log_ratio is. Raises ValueError if the
        shapes differ or the batch is empty.
        """
        with torch.no_grad():
            micro = self._prepare(log_ratio, mask, advantages, batch)
            found = self.surrogate(micro, UpdateContext(progress=progress, mean_reward=mean_reward))
            losses = _weighed_loss(found.loss, importance_sampling_ratio)
            gradient = _weighed(found.gradient, importance_sampling_ratio)
            overflow = _overflow(micro)
            records = found.records | {
                "loss": torch.where(micro.tokens > 0, losses, torch.nan),
                "overflow_tokens": overflow,
            }
        loss = _ClosedForm.apply(  # type: ignore[no-untyped-call]
            log_ratio, losses.sum().to(micro.x.dtype), gradient.to(log_ratio.dtype)
        )
        return LossOutput(
            loss=loss,
            recorded_loss=torch.where(overflow == 0, losses, 0.0).sum(),
            trajectories=records,
            token_weights=found.weights,
            passes=found.passes,
            distance=_distance(gradient, found.at_1_and_0, importance_sampling_ratio),
        )

    def _prepare(self, log_ratio: Tensor, mask: Tensor, advantages: Tensor, batch: BatchFacts) -> MicroBatch:
        if log_ratio.shape != mask.shape or advantages.shape != log_ratio.shape[:1]:
            raise ValueError(
                f"log_ratio {tuple(log_ratio.shape)}, mask {tuple(mask.shape)} and "
                f"advantages {tuple(advantages.shape)} must be [B, T], [B, T] and [B]"
            )
        if batch.trajectories < 1 or batch.tokens < 1:
            raise ValueError("no trajectory of the minibatch has a token: there is no loss")
        work = torch.float64 if log_ratio.dtype == torch.float64 else torch.float32
        inside = mask.to(work)
        raw = torch.where(mask, log_ratio.detach().to(work), 0.0)
        tokens = inside.sum(-1)
        some = tokens > 0
        elsewhere = (inside - 1) * torch.finfo(work).max
        lowest = torch.where(some, (raw - elsewhere).amin(-1), 0.0)
        highest = torch.where(some, (raw + elsewhere).amax(-1), 0.0)
        return MicroBatch(
            raw=raw,
            x=raw.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT),
            mask=inside,
            tokens=tokens,
            lowest=lowest.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT),
            highest=highest.clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT),
            advantages=advantages.double(),
            weight=torch.where(some, self.weight(tokens.double(), batch), 0.0),
            batch=batch,
        )


def _overflow(micro: MicroBatch) -> Tensor:
    """Tokens [B] float64 with x > 20 and A < 0: a huge loss without a gradient."""
    return torch.where(micro.advantages < 0, (micro.raw > LOG_RATIO_LIMIT).sum(-1).double(), 0.0)


def _distance(
    gradient: Tensor, at_1_and_0: tuple[Tensor, Tensor] | None, importance_sampling_ratio: Tensor | None
) -> Distance:
    if at_1_and_0 is None:
        return Distance()
    at_1, at_0 = (_weighed(one, importance_sampling_ratio).double() for one in at_1_and_0)
    apart = (gradient.double() - at_1, at_0 - at_1, at_1)
    return Distance(*(one.square().sum() for one in apart))


def _weighed_loss(losses: Tensor, importance_sampling_ratio: Tensor | None) -> Tensor:
    """Sequence weights [B] scale the loss; token weights leave its value."""
    if importance_sampling_ratio is None or importance_sampling_ratio.dim() == 2:
        return losses
    return losses * importance_sampling_ratio.double()


def _weighed(gradient: Tensor, importance_sampling_ratio: Tensor | None) -> Tensor:
    """Apply the sampler's weight: x^ = sg(x~) + w (x~ - sg(x~)) for tokens, w L for sequences."""
    if importance_sampling_ratio is None:
        return gradient
    weight = importance_sampling_ratio.detach().to(gradient.dtype)
    return gradient * (weight if weight.dim() == 2 else weight[:, None])
