"""Importance weights for the difference between the engine that sampled and the trainer's own log-probs.

They never enter the ratio that drives p, f and ESS. TRL and docs/pmpo.md describe the same truncation.
"""

from typing import Literal

import torch
from torch import Tensor

WeightKind = Literal["off", "token", "sequence", "sequence_mean"]


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


def sampling_kl(old_log_probs: Tensor, sampler_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Mean token k3 estimate of KL(rollout || trainer) [B], float64, untruncated; NaN without tokens."""
    difference = (
        torch.where(mask, old_log_probs - sampler_log_probs, 0.0).detach().double().clamp(-20.0, 20.0)
    )
    tokens = mask.sum(-1)
    return (torch.expm1(difference) - difference).sum(-1) / torch.where(tokens > 0, tokens, torch.nan)
