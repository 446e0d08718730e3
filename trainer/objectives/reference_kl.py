"""The KL penalty to a reference policy."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

MOST_ERROR = 0.2


@dataclass(frozen=True)
class BetaControl:
    """Moves beta so that the KL comes to its target (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    beta grows by the factor 1 + e n / horizon, with e = KL / target - 1 within +-0.2, after n trajectories.
    """

    target: float  # nats a token
    horizon: int  # trajectories

    def after(self, beta: float, kl: float, trajectories: int) -> float:
        """beta after an update that saw this KL; unchanged where there was none."""
        if not math.isfinite(kl):
            return beta
        error = min(MOST_ERROR, max(-MOST_ERROR, kl / self.target - 1))
        return beta * (1 + error * min(trajectories, self.horizon) / self.horizon)


def k3(log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference) [B, T], >= 0, 0 on padding (Schulman's k3).

    exp(d) - d - 1 with d = log ref - log pi, held within +-20 so that it stays finite. Differentiable in
    log_probs.
    """
    difference = torch.where(mask, reference_log_probs - log_probs, 0.0).clamp(-20.0, 20.0)
    return torch.expm1(difference) - difference


def kl_penalty(
    log_probs: Tensor, reference_log_probs: Tensor, mask: Tensor, beta: float, total_tokens: int
) -> Tensor:
    """beta times the token mean of k3 over the whole minibatch: sums over micro-batches are exact.

    log-probs [B, T] nats, mask [B, T] bool; `total_tokens` counts the whole minibatch's. Returns a scalar.
    """
    return beta * k3(log_probs, reference_log_probs, mask).sum() / total_tokens
