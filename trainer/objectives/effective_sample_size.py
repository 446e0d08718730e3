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

from trainer.objectives.power_mean import CentredTokens, variation

TOLERANCE = 1e-6  # on |N(p) - N*|, as a share of 1 - N(1)
MOST_ITERATIONS = 60  # bisection alone needs about 45


@dataclass(frozen=True)
class Evaluation:
    """N and its slope at one p, for R trajectories."""

    variation: Tensor  # [R] v = 1/N - 1
    slope: Tensor  # [R] d log N / d (p^2), negative

    @property
    def deficit(self) -> Tensor:
        """1 - N [R]."""
        return self.variation / (1 + self.variation)


def interpolated_deficit(fraction: Tensor, deficit_at_1: Tensor) -> Tensor:
    """1 - N* for N* = N(1) + f (1 - N(1)): f = 0 keeps p at 1, f = 1 brings it to 0, always attainable."""
    return (1 - fraction) * deficit_at_1


def absolute_deficit(fraction: Tensor, tokens: Tensor) -> Tensor:
    """1 - N* for N* = 1/T + f (1 - 1/T): a control; N(1) is nearly always above it, and p then stays 1."""
    return (1 - fraction) * (1 - 1 / tokens)


def evaluate(z: Tensor, tokens: Tensor, p: Tensor) -> Evaluation:
    """N(p) and its slope for centred log-ratios z [R, T] (0 on padding), T [R] and 0 < p [R] <= 1.

    With K(p) = log mean exp(p z): log N = 2 K(p) - K(2p), so d log N / dp = 2 K'(p) - 2 K'(2p).
    Padding adds 0 to every sum, as its z is 0.
    """
    deviation = torch.expm1(z * p[:, None])
    weighted = deviation * z
    mean = deviation.sum(-1) / tokens
    mean_square = torch.linalg.vecdot(deviation, deviation) / tokens
    first = weighted.sum(-1) / tokens  # mean of z e^{pz}, as z has mean 0
    second = torch.linalg.vecdot(weighted, deviation) / tokens + 2 * first  # mean of z e^{2pz}
    slope = (first / (1 + mean) - second / (1 + 2 * mean + mean_square)) / p
    return Evaluation(variation=variation(mean, mean_square), slope=slope)


@torch.no_grad()
def solve_exponent(centred: CentredTokens, target: Tensor, deficit_at_1: Tensor, start: Tensor) -> Tensor:
    """p [R] in [0, 1] with |N(p) - N*| <= 1e-6 (1 - N(1)), or the bound beyond which N* lies.

    Newton on log N against p^2 inside a bracket that every evaluation tightens; a step out of the bracket is
    replaced by its middle. All trajectories at once, in float64; those that are done drop out.

    target is 1 - N* > 0. Shapes: centred.z [R, T]; target, deficit_at_1 and start [R], float64; every
    trajectory has two different ratios.
    """
    answer = torch.ones_like(target)
    todo = (target < deficit_at_1).nonzero()[:, 0]  # otherwise N(1) is at or above N*: p = 1
    z, tokens = centred.z.double()[todo], centred.tokens.double()[todo]
    goal, allowed = target[todo], TOLERANCE * deficit_at_1[todo]
    square = start[todo].square().clamp(1e-12, 1.0)
    low, high = torch.zeros_like(square), torch.ones_like(square)
    for _ in range(MOST_ITERATIONS):
        if not todo.numel():
            break
        p = square.sqrt()
        found = evaluate(z, tokens, p)
        answer[todo] = p
        too_even = found.deficit < goal
        low, high = torch.where(too_even, square, low), torch.where(too_even, high, square)
        # log N* - log N, from deficits
        step = square + (torch.log1p(-goal) + torch.log1p(found.variation)) / found.slope
        square = torch.where((step > low) & (step < high), step, (low + high) / 2)
        left = ((found.deficit - goal).abs() > allowed).nonzero()[:, 0]
        if left.numel() < todo.numel():
            todo, z, tokens, goal, allowed = todo[left], z[left], tokens[left], goal[left], allowed[left]
            square, low, high = square[left], low[left], high[left]
    return answer
