"""Choosing PMPO's exponent: from a trajectory's clip fraction to a target ESS, and from the target to p.

The rule "clip fraction -> target ESS -> p" is arXiv 2601.22521's (abstract). The maps, the solver and its
numerics are ours (reconstruction): the paper's formula is not known to us. docs/pmpo.md lists the choices.

Everything is said in deficits d = 1 - N, which keep their digits where N is near 1. N falls strictly in p > 0
whenever two ratios differ, so the root is unique. For a small variance s^2 of the log-ratios N(p) ~ exp(-s^2
p^2): the solver therefore works on log N as a function of p^2, which is nearly a straight line.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.fusing import fused
from trainer.objectives.power_mean import variation

# Newton's steps within a bracket. Always so many: a look at whether they suffice would have a GPU wait. Most
# trajectories need 5; the hardest of 13,000 (heavy tails, lone ratios of e^20) took 15.
STEPS = 20
THERE = 1e-9  # a step that is smaller, as a share of p^2, has arrived


@dataclass(frozen=True)
class Evaluation:
    """N and its slope at one p, for B trajectories."""

    variation: Tensor  # [B] v = 1/N - 1
    slope: Tensor  # [B] d log N / d (p^2), negative

    @property
    def deficit(self) -> Tensor:
        """1 - N [B]."""
        return self.variation / (1 + self.variation)


def interpolated_deficit(fraction: Tensor, deficit_at_1: Tensor) -> Tensor:
    """1 - N* for N* = N(1) + f (1 - N(1)): f = 0 keeps p at 1, f = 1 brings it to 0, always attainable."""
    return (1 - fraction) * deficit_at_1


def absolute_deficit(fraction: Tensor, tokens: Tensor) -> Tensor:
    """1 - N* for N* = 1/T + f (1 - 1/T): a control; N(1) is nearly always above it, and p then stays 1."""
    return (1 - fraction) * (1 - 1 / tokens)


def evaluate(z: Tensor, tokens: Tensor, p: Tensor) -> Evaluation:
    """N(p) and its slope for centred log-ratios z [B, T] (0 on padding), T [B] and 0 < p [B] <= 1, float64.

    Padding adds 0 to every sum, as its z is 0. With K(p) = log mean exp(p z): log N = 2 K(p) - K(2p), so d
    log N / dp = 2 K'(p) - 2 K'(2p).
    """
    deviation = torch.expm1(z * p[:, None])
    mean = deviation.sum(-1) / tokens
    mean_square = torch.linalg.vecdot(deviation, deviation) / tokens
    weighted = deviation * z
    first = weighted.sum(-1) / tokens  # mean of z e^{pz}, as z has mean 0
    second = torch.linalg.vecdot(weighted, deviation) / tokens + 2 * first  # of z e^{2pz}
    slope = (first / (1 + mean) - second / (1 + 2 * mean + mean_square)) / p
    return Evaluation(variation=variation(mean, mean_square), slope=slope)


@torch.no_grad()
def solve_exponent(
    z: Tensor, tokens: Tensor, target: Tensor, start: Tensor, wanted: Tensor | None = None
) -> Tensor:
    """p [B] in (0, 1] with |N(p) - N*| <= 1e-6 (1 - N(1)), or 1 where N(1) is at N* or above it.

    Newton on log N against p^2 inside a bracket that every evaluation tightens; a step out of the bracket is
    replaced by its middle. All trajectories at once. The host looks whether all have arrived on a CPU alone,
    where that costs nothing.

    z [B, T] centred log-ratios (0 on padding), tokens [B], target [B] is 1 - N*, start [B] in [0, 1]: all
    float64. Rows that are not `wanted` [B] (all are, by default) get some p, and so do rows of equal ratios.
    """
    wanted = torch.ones_like(target, dtype=torch.bool) if wanted is None else wanted
    low, high = torch.zeros_like(target), torch.ones_like(target)
    square = start.square().clamp(1e-12, 1)
    step = fused(_newton_step, z)
    for _ in range(STEPS):
        before = square
        low, high, square = step(z, tokens, target, low, high, square)
        if not z.is_cuda and bool((square == before)[wanted].all()):  # no further step would move them
            break
    return torch.where(evaluate(z, tokens, torch.ones_like(start)).deficit <= target, 1.0, square.sqrt())


def _newton_step(
    z: Tensor, tokens: Tensor, target: Tensor, low: Tensor, high: Tensor, square: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The bracket of p^2, and p^2 itself, after one more evaluation."""
    found = evaluate(z, tokens, square.sqrt())
    too_even = found.deficit < target
    low = torch.where(too_even, square, low)
    high = torch.where(too_even, high, square)
    # log N* - log N, from deficits
    step = square + (torch.log1p(-target) + torch.log1p(found.variation)) / found.slope
    there = (step - square).abs() <= THERE * square  # rounding must not throw it out again
    inside = (step > low) & (step < high)
    return low, high, torch.where(there, square, torch.where(inside, step, (low + high) / 2))
