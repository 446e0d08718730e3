"""From logits to tokens and the log-probs of the distribution that they were drawn from."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rollout.engine import EngineError

_ROWS_AT_ONCE = 64  # the float64 sums below take 8 bytes for each row and token of the vocabulary


@dataclass(frozen=True)
class Chosen:
    """One token for each row."""

    tokens: Tensor  # [B] int64
    log_probs: Tensor  # [B] float32, nats


def choose(logits: Tensor, temperature: float, draws: Tensor) -> Chosen:
    """Draw from softmax(logits / temperature) over the whole vocabulary; greedy at temperature 0.

    logits [B, V]; draws [B] float64, uniform in [0, 1). A row's token depends on its own logits and draw
    alone, so the rows that share a batch with it cannot change it. At temperature 0 the log-probs are those
    at temperature 1. Raises EngineError (not_finite) when a row's logits hold no distribution.
    """
    parts = [
        _choose(some, temperature, some_draws)
        for some, some_draws in zip(
            torch.split(logits, _ROWS_AT_ONCE), torch.split(draws, _ROWS_AT_ONCE), strict=True
        )
    ]
    return Chosen(torch.cat([part.tokens for part in parts]), torch.cat([part.log_probs for part in parts]))


def _choose(logits: Tensor, temperature: float, draws: Tensor) -> Chosen:
    scaled = logits.float() / (temperature or 1.0)
    normalizers = scaled.logsumexp(-1)
    if not bool(torch.isfinite(normalizers).all()):
        raise EngineError(
            500,
            "not_finite",
            "the model's logits are not finite: its weights have diverged",
            remedy="Lower optimizer.learning_rate or optimizer.max_grad_norm, and start from a checkpoint.",
        )
    tokens = scaled.argmax(-1) if temperature == 0 else _invert(scaled - normalizers[:, None], draws)
    return Chosen(tokens, scaled.gather(-1, tokens[:, None])[:, 0] - normalizers)


def _invert(log_probs: Tensor, draws: Tensor) -> Tensor:
    """The first token at which the cumulative probability exceeds the draw: never one of probability 0."""
    cumulative = log_probs.exp().cumsum(-1, dtype=torch.float64)
    totals = cumulative[:, -1]
    targets = torch.minimum(draws * totals, torch.nextafter(totals, torch.zeros_like(totals)))
    return torch.searchsorted(cumulative, targets[:, None], right=True)[:, 0]
