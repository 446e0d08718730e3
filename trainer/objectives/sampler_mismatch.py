"""The difference between the engine that sampled and the trainer: importance weights, and what is recorded.

They never enter the ratio that drives p, f and ESS. TRL and docs/pmpo.md describe the same truncation.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from powermean.contracts.metrics import IMPORTANCE_RATIOS

WeightKind = Literal["off", "token", "sequence", "sequence_mean"]
LEVELS: tuple[WeightKind, ...] = ("token", "sequence", "sequence_mean")


def raw_weights(
    old_log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, kind: WeightKind
) -> Tensor | None:
    """pi_old / pi_rollout before truncation: [B, T] for token (1 on padding), [B] for the sequence kinds.

    pi_old is the trainer's log-prob at the start of the update, [B, T] nats. None for "off".
    """
    if kind == "off":
        return None
    difference = torch.where(mask, old_log_probs - sampler_log_probs, 0.0).detach().double()
    if kind == "sequence":
        difference = difference.sum(-1)
    elif kind == "sequence_mean":
        difference = difference.sum(-1) / mask.sum(-1).clamp(min=1)
    return difference.clamp(-20.0, 20.0).exp()


def truncated(weights: Tensor | None, cap: float) -> Tensor | None:
    """min(w, cap)."""
    return None if weights is None else weights.clamp(max=cap)


def sampling_kl(
    old_log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, cap: float | None = None
) -> Tensor:
    """Mean token k3 estimate of KL(rollout || trainer) [B], float64; NaN without tokens.

    Untruncated, or with each token's weight held at `cap`: what of it the truncated weights still see.
    """
    weights = raw_weights(old_log_probs, sampler_log_probs, mask, "token")
    assert weights is not None
    if cap is not None:
        weights = weights.clamp(max=cap)
    difference = weights.log()
    return _mean_of_tokens(torch.expm1(difference) - difference, mask)


@dataclass(frozen=True)
class Mismatch:
    """Engine and trainer compared over a rollout batch. NaN where the trainer's log-probs are not known."""

    kl: Tensor  # [N] nats
    kl_truncated: Tensor  # [N] nats, with token ratios held at the cap
    token_ratio: Tensor  # [N] mean of its tokens' raw weights
    sequence_ratio: Tensor  # [N] raw, of the whole sequence
    applied: Tensor  # [N] truncated weight that acts, or the mean of its tokens'; NaN if off
    metrics: Mapping[str, float]  # of the batch, by name; empty where nothing is known


def mismatch(
    log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor, kind: WeightKind, cap: float
) -> Mismatch:
    """Compare the trainer's log-probs at the start of the step with the engine's, [N, T] nats both.

    `mask` [N, T] bool; tokens whose `log_probs` are NaN are not known and count nowhere. `kind` and `cap` are
    the spec's: raw and truncated weights of every level are described, whichever of them acts.
    """
    mask = mask & ~log_probs.isnan()
    known = mask.any(-1)
    raw = {level: raw_weights(log_probs, sampler_log_probs, mask, level) for level in LEVELS}
    token, sequence = raw["token"], raw["sequence"]
    assert token is not None
    assert sequence is not None
    acting = truncated(raw.get(kind), cap)
    if acting is None:
        acting = torch.full_like(sequence, torch.nan)
    elif acting.dim() == 2:
        acting = _mean_of_tokens(acting, mask)
    kl, kl_truncated = (sampling_kl(log_probs, sampler_log_probs, mask, limit) for limit in (None, cap))
    metrics: dict[str, float] = {}
    if known.any():
        gap = (log_probs - sampler_log_probs)[mask].double().abs()
        share = mask.sum(-1)[known].double() / mask.sum()
        metrics = {
            "sampling/sampling_logp_difference/mean": float(gap.mean()),
            "sampling/sampling_logp_difference/max": float(gap.max()),
            "sampling/kl": float((kl[known] * share).sum()),
            "sampling/kl_truncated": float((kl_truncated[known] * share).sum()),
        }
        for level, weights in raw.items():
            assert weights is not None
            present = weights[mask if weights.dim() == 2 else known]
            metrics |= _described(IMPORTANCE_RATIOS[level], present, cap)
    return Mismatch(
        kl=kl,
        kl_truncated=kl_truncated,
        token_ratio=_mean_of_tokens(token, mask),
        sequence_ratio=torch.where(known, sequence, torch.nan),
        applied=torch.where(known, acting, torch.nan),
        metrics=metrics,
    )


def _described(name: str, weights: Tensor, cap: float) -> dict[str, float]:
    """Smallest, mean and largest of weights [n], raw and truncated, and the share that the cap holds."""
    held = weights.clamp(max=cap)
    return {
        f"{name}/raw_min": float(weights.min()),
        f"{name}/raw_mean": float(weights.mean()),
        f"{name}/raw_max": float(weights.max()),
        f"{name}/min": float(held.min()),
        f"{name}/mean": float(held.mean()),
        f"{name}/max": float(held.max()),
        f"{name}/share_truncated": float((weights > cap).double().mean()),
    }


def _mean_of_tokens(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of [N, T] over each trajectory's tokens [N]; NaN without any."""
    tokens = mask.sum(-1)
    return torch.where(mask, values, 0.0).sum(-1) / torch.where(tokens > 0, tokens, torch.nan)
