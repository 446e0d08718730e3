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

from trainer.objectives.power_mean import variation

# On |N(p) - N*|, as a share of 1 - N(1). The promise is 1e-6; half of it is left to N(1) itself, and so
# to N*, which float32 log-ratios give in float32.
SOLVED_TO = 5e-7
NEAR = 3e-4  # the same, where float32 hands over to float64
MOST_FLOAT32_STEPS = 3
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


def evaluate(z: Tensor, tokens: Tensor, p: Tensor | None, slope: Tensor | None = None) -> Evaluation:
    """N(p) and its slope for centred log-ratios z [R, T] (0 on padding), T [R] and 0 < p [R] <= 1.

    p None is 1; a `slope` that is known well enough is not computed again. Tokens are worked in z's dtype,
    their sums in float64. Padding adds 0 to every sum, as its z is 0.

    With K(p) = log mean exp(p z): log N = 2 K(p) - K(2p), so d log N / dp = 2 K'(p) - 2 K'(2p).
    """
    deviation = torch.expm1(z if p is None else z * p.to(z.dtype)[:, None])
    mean = deviation.sum(-1).double() / tokens
    mean_square = torch.linalg.vecdot(deviation, deviation).double() / tokens
    if slope is None:
        weighted = deviation * z
        first = weighted.sum(-1).double() / tokens  # mean of z e^{pz}, as z has mean 0
        second = torch.linalg.vecdot(weighted, deviation).double() / tokens + 2 * first  # of z e^{2pz}
        slope = first / (1 + mean) - second / (1 + 2 * mean + mean_square)
        slope = slope if p is None else slope / p
    return Evaluation(variation=variation(mean, mean_square), slope=slope)


@torch.no_grad()
def solve_exponent(z: Tensor, tokens: Tensor, target: Tensor, at_1: Evaluation) -> Tensor:
    """p [R] in [0, 1] with |N(p) - N*| <= 1e-6 (1 - N(1)), or the bound beyond which N* lies.

    Newton on log N against p^2 inside a bracket that every evaluation tightens; a step out of the bracket is
    replaced by its middle. All trajectories at once; those that are done drop out. The first steps may be
    taken in float32 (z's dtype), the last evaluation is always in float64.

    z [R, T] centred log-ratios (0 on padding), each row with two different ones; tokens [R] float64; target
    is 1 - N* > 0, [R] float64; `at_1` is `evaluate` at p = 1.
    """
    answer = torch.ones_like(target)
    todo = (target < at_1.deficit).nonzero()[:, 0]  # otherwise N(1) is at or above N*: p = 1
    if not todo.numel():
        return answer
    if todo.numel() < len(target):
        z, tokens, target = z[todo], tokens[todo], target[todo]
        at_1 = Evaluation(at_1.variation[todo], at_1.slope[todo])
    allowed = SOLVED_TO * at_1.deficit
    search = _Search(_first_guess(z, tokens, target, at_1).square(), target)
    slope = None
    for _ in range(MOST_FLOAT32_STEPS if z.dtype != torch.float64 else 0):
        near = evaluate(z, tokens, search.square.sqrt())
        search.step(near)
        slope = near.slope
        # Newton squares the error, so from here one step lands on the target
        if ((near.deficit - search.target).abs() <= NEAR * at_1.deficit).all():
            break
    for _ in range(MOST_ITERATIONS):
        p = search.square.sqrt()
        found = evaluate(z.double(), tokens, p, slope)
        slope = None
        answer[todo] = p
        left = ((found.deficit - search.target).abs() > allowed).nonzero()[:, 0]
        if not left.numel():
            break
        search.step(found)
        search = search.rows(left)
        todo, z, tokens, allowed = todo[left], z[left], tokens[left], allowed[left]
    return answer


class _Search:
    """A bracketed Newton search for p^2 where the deficit meets its target."""

    def __init__(self, square: Tensor, target: Tensor) -> None:
        self.square, self.target = square, target
        self.low, self.high = torch.zeros_like(square), torch.ones_like(square)

    def step(self, found: Evaluation) -> None:
        """Tighten the bracket by what was found at p^2, and move on."""
        too_even = found.deficit < self.target
        self.low = torch.where(too_even, self.square, self.low)
        self.high = torch.where(too_even, self.high, self.square)
        # log N* - log N, from deficits
        step = self.square + (torch.log1p(-self.target) + torch.log1p(found.variation)) / found.slope
        inside = (step > self.low) & (step < self.high)
        self.square = torch.where(inside, step, (self.low + self.high) / 2)

    def rows(self, index: Tensor) -> "_Search":
        """The search for some of the trajectories only."""
        some = _Search(self.square[index], self.target[index])
        some.low, some.high = self.low[index], self.high[index]
        return some


def _first_guess(z: Tensor, tokens: Tensor, target: Tensor, at_1: Evaluation) -> Tensor:
    """p [R] near the root, from the variance and skewness of z and from N(1) and its slope.

    With y = sqrt(-log N), p(y) is smooth: p = a t + b t^2 + c t^3 + d t^4 for t = y / y(1). a and b follow
    from the cumulants at p = 0 (y = s p + k3 / (2 s) p^2 + ...), c and d from the value and the slope at p =
    1.
    """
    square = z * z
    variance = square.sum(-1).double() / tokens
    skewed = torch.linalg.vecdot(square, z).double() / tokens
    length = torch.log1p(at_1.variation)
    a = (length / variance).sqrt()
    b = -skewed * length / (2 * variance.square())
    at_end = length / -at_1.slope
    d = at_end - a - 2 * b - 3 * (1 - a - b)
    c = 1 - a - b - d
    t = (-torch.log1p(-target) / length).sqrt()
    guess = t * (a + t * (b + t * (c + t * d)))
    # far from small spreads the polynomial may leave (0, 1); t alone is the rule for small ones
    return torch.where((guess > 0) & (guess < 1), guess, t).clamp(1e-6, 1 - 1e-9)
