"""The KL penalty to a reference policy."""

import torch
from torch import Tensor


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
