"""One-sided clipping of log importance ratios, and what share of the tokens it touches.

Notation is docs/notation.md's: x [B, T] log-ratios, mask [B, T] completion tokens, A [B] advantages.
"""

from dataclasses import dataclass
from math import log, log1p

import torch
from torch import Tensor

from powermean.contracts.algorithms import LOG_RATIO_LIMIT


@dataclass(frozen=True)
class ClipRange:
    """A range of log-ratios [-low, +high]; both ends are positive numbers."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (self.low > 0 and self.high > 0):
            raise ValueError(
                f"a clip range needs two positive ends in log space, not {self.low} and {self.high}"
            )

    @classmethod
    def from_ratio(cls, epsilon_low: float, epsilon_high: float) -> "ClipRange":
        """The range of ratios [1 - epsilon_low, 1 + epsilon_high] in log space."""
        return cls(low=-log1p(-epsilon_low), high=log(1 + epsilon_high))


@dataclass(frozen=True)
class ClipFractions:
    """Shares [B], float64, of a trajectory's tokens. NaN for a trajectory without tokens."""

    low: Tensor  # x < -c_lo and A < 0: the clip binds
    high: Tensor  # x > c_hi and A > 0: the clip binds
    outside: Tensor  # x outside the range on either side, whatever A is

    @property
    def active(self) -> Tensor:
        return self.low + self.high


def one_sided(x: Tensor, advantages: Tensor, bounds: ClipRange | None) -> Tensor:
    """x clipped as PPO's min() does it, and held within +-20 so that nothing overflows.

    A >= 0 takes min(x, high), A < 0 takes max(x, -low). None clips nothing but the +-20.
    x is [B, T] or [B]; A is [B]. The clip binds exactly where the result differs from x.
    """
    limit = torch.full_like(advantages, LOG_RATIO_LIMIT, dtype=x.dtype)
    negative = advantages < 0
    lower = -limit if bounds is None else torch.where(negative, -min(bounds.low, LOG_RATIO_LIMIT), -limit)
    upper = limit if bounds is None else torch.where(negative, limit, min(bounds.high, LOG_RATIO_LIMIT))
    if x.dim() == 2:
        lower, upper = lower[:, None], upper[:, None]
    return torch.minimum(torch.maximum(x, lower), upper)  # faster than clamp with tensors


def clip_fractions(x: Tensor, tokens: Tensor, advantages: Tensor, bounds: ClipRange) -> ClipFractions:
    """Shares of tokens beyond `bounds`. x is 0 on padding, so padding never counts.

    Shapes: x [B, T], tokens [B] (number of completion tokens), advantages [B].
    """
    count = torch.where(tokens > 0, tokens, torch.nan).double()
    # -1, 0 or 1 per token: floats, since counting booleans costs more than an exponential
    side = torch.sign(x - x.clamp(-bounds.low, bounds.high))
    outside = torch.linalg.vecdot(side, side).double()
    above = ((outside + side.sum(-1).double()) / 2).round() / count
    below = outside / count - above
    nothing = 0 / count  # keeps NaN where there are no tokens
    return ClipFractions(
        low=torch.where(advantages < 0, below, nothing),
        high=torch.where(advantages > 0, above, nothing),
        outside=outside / count,
    )
