"""The power mean of a trajectory's token ratios, its token weights, and its effective sample size.

    M_p = ( (1/T) sum_t exp(p x_t) )^(1/p),   M_0 = exp( (1/T) sum_t x_t )
    W_t(p) = exp(p x_t) / sum_k exp(p x_k) = d log M_p / d x_t
    N(p) = 1 / (T sum_t W_t(p)^2)

M_p and W are arXiv 2601.22521's (abstract); the numerics are ours. Everything is computed from the deviations
e_t = exp(p (x_t - mu)) - 1 with mu the mean of x: their mean is >= 0 (Jensen), so log1p never sees -1, also
where all ratios are near e^-15 and a sum of exp(x) - 1 would round to -1 exactly. The deficit 1 - N = v / (1
+ v) with v = var(e) / mean(1 + e)^2 keeps its digits where N is near 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GEOMETRIC = 1e-12  # below this |p| log M_p is mu to 2e-10 for |x| <= 20; the division by p must not see 0
SHIFT_ABOVE = 40.0  # above this |p| * range, exp(p z)^2 may leave float32: shift by the maximum instead


@dataclass(frozen=True)
class CentredTokens:
    """Log-ratios of B trajectories about their means. Padding is 0 in z and does not count."""

    z: Tensor  # [B, T] x - mu on completion tokens, 0 elsewhere
    mu: Tensor  # [B] mean log-ratio
    mask: Tensor  # [B, T] 1.0 on completion tokens, 0.0 elsewhere
    counts: Tensor  # [B] completion tokens, may be 0

    @property
    def tokens(self) -> Tensor:
        """[B] the counts, at least 1 so that they divide."""
        return self.counts.clamp(min=1)


@dataclass(frozen=True)
class PowerMean:
    """The power mean of B trajectories at p [B]."""

    log_mean: Tensor  # [B] log M_p, float64: in float32 its own rounding at 20 would be the largest error
    weights: Tensor  # [B, T] W_t(p), 0 on padding, sums to 1
    ess: Tensor  # [B] N(p) in [1/T, 1], float64


def centre(x: Tensor, mask: Tensor, counts: Tensor) -> CentredTokens:
    """Centre x [B, T] (finite, 0 on padding) about each trajectory's mean over its own tokens.

    mask [B, T] is 1.0 or 0.0, counts [B] its sums, both of x's dtype.
    """
    mu = x.sum(-1) / counts.clamp(min=1)
    return CentredTokens(z=(x - mu[:, None]).mul_(mask), mu=mu, mask=mask, counts=counts)


def power_mean(centred: CentredTokens, p: Tensor, largest_p: float) -> PowerMean:
    """M_p, W and N at p [B] float64. `largest_p` bounds |p| and tells whether an overflow is possible at all.

    Exact to 3e-6 in float32 for |x| <= 20, and to rounding in float64.
    """
    result = _by_deviations(centred, p)
    # z spans at most twice the +-20 of the clamp
    if largest_p * 2 * 20.0 <= SHIFT_ABOVE:
        return result
    spread = centred.z.amax(-1) - centred.z.amin(-1)
    wide = (p.abs() * spread > SHIFT_ABOVE)[:, None]
    shifted = _by_shift(centred, p)
    return PowerMean(
        log_mean=torch.where(wide[:, 0], shifted.log_mean, result.log_mean),
        weights=torch.where(wide, shifted.weights, result.weights),
        ess=torch.where(wide[:, 0], shifted.ess, result.ess),
    )


def _by_deviations(centred: CentredTokens, p: Tensor) -> PowerMean:
    """Tokens are worked in their own type, what is summed over them in float64."""
    tokens = centred.tokens.double()
    deviations = torch.expm1(centred.z * p.to(centred.z.dtype)[:, None])
    mean = deviations.sum(-1).double() / tokens
    mean_square = torch.linalg.vecdot(deviations, deviations).double() / tokens
    geometric = p.abs() < GEOMETRIC
    excess = torch.log1p(mean) / torch.where(geometric, 1.0, p)
    scale = (1 / (tokens * (1 + mean))).to(deviations.dtype)
    return PowerMean(
        log_mean=centred.mu.double() + torch.where(geometric, 0.0, excess),
        weights=deviations.add_(1).mul_(scale[:, None]).mul_(centred.mask),
        ess=1 / (1 + variation(mean, mean_square)),
    )


def variation(mean: Tensor, mean_square: Tensor) -> Tensor:
    """Squared coefficient of variation v of exp(p z), from the means of e and e^2: N = 1 / (1 + v)."""
    return (mean_square - mean.square()).clamp(min=0) / (1 + mean).square()


def _by_shift(centred: CentredTokens, p: Tensor) -> PowerMean:
    exponent = (centred.z * p.to(centred.z.dtype)[:, None]).masked_fill(centred.mask == 0, -torch.inf)
    top = exponent.amax(-1).clamp(min=torch.finfo(exponent.dtype).min)  # an empty row has no maximum
    terms = torch.exp(exponent - top[:, None])
    total = terms.sum(-1).clamp(min=torch.finfo(exponent.dtype).tiny)
    return PowerMean(
        log_mean=centred.mu.double()
        + (top.double() + torch.log(total.double() / centred.tokens)) / torch.where(p == 0, 1.0, p),
        weights=terms / total[:, None],
        ess=total.square().double()
        / (centred.tokens * terms.square().sum(-1)).clamp(min=torch.finfo(terms.dtype).tiny),
    )
