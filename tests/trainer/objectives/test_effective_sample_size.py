"""Laws of the solver: the solved p meets its target, at every scale, alone or in a batch."""

import itertools
from math import atanh, sqrt

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from objective_batches import log_ratios, long_ess
from scipy.optimize import brentq

from trainer.objectives.effective_sample_size import (
    absolute_deficit,
    evaluate,
    interpolated_deficit,
    solve_exponent,
)
from trainer.objectives.power_mean import CentredTokens, centre

fractions = st.floats(1e-6, 1 - 1e-6)
trajectories = hnp.arrays(np.float64, st.integers(2, 12), elements=log_ratios(20.0))
float32_trajectories = hnp.arrays(np.float32, st.integers(2, 40), elements=st.floats(-20, 20, width=32))


def centred(x: np.ndarray) -> CentredTokens:
    tokens = torch.from_numpy(np.atleast_2d(x))
    return centre(tokens, torch.ones_like(tokens, dtype=torch.bool))


def deficit_at_1(tokens: CentredTokens) -> torch.Tensor:
    count = tokens.tokens.double()
    return evaluate(tokens.z.double(), count, torch.ones_like(count)).deficit


def solve(x: np.ndarray, fraction: float) -> tuple[float, float]:
    """p and N* for one trajectory by `interpolate`."""
    tokens, f = centred(x), torch.tensor([fraction], dtype=torch.float64)
    at_1 = deficit_at_1(tokens)
    target = interpolated_deficit(f, at_1)
    return solve_exponent(tokens, target, at_1, (1 - f).sqrt()).item(), 1 - target.item()


def assert_on_target(x: np.ndarray, p: float, fraction: float, tolerance: float) -> None:
    at_1 = 1 - long_ess(x, 1.0)
    target = (1 - np.longdouble(fraction)) * at_1
    assert abs((1 - long_ess(x, p)) - target) <= tolerance * at_1 + 1e-18


@given(trajectories, fractions)
def test_law_solved_p_reaches_its_target(x: np.ndarray, fraction: float) -> None:
    assume(np.ptp(x) > 1e-7)
    p, _ = solve(x, fraction)
    assert 0 <= p <= 1
    assert_on_target(x, p, fraction, 1.01e-6)


@given(float32_trajectories, fractions)
def test_law_solved_p_reaches_its_target_from_float32(x: np.ndarray, fraction: float) -> None:
    assume(np.ptp(x) > 1e-3)
    p, _ = solve(x, fraction)
    assert_on_target(x, p, fraction, 3e-6)


@given(trajectories, st.lists(fractions, min_size=2, max_size=4).map(sorted))
def test_law_more_clipping_never_raises_p(x: np.ndarray, rising: list[float]) -> None:
    assume(np.ptp(x) > 1e-5)
    found = [solve(x, f)[0] for f in rising]
    assert all(later <= earlier + 1e-5 for earlier, later in itertools.pairwise(found))


@given(st.floats(1e-6, 15.0), fractions)
def test_two_tokens_have_a_closed_form(half: float, fraction: float) -> None:
    # x = (a, -a): W = sigmoid(+-2pa), so N = 1 / (1 + tanh(pa)^2)
    p, target = solve(np.array([half, -half]), fraction)
    expected = atanh(sqrt(1 / target - 1)) / half if target < 1 else 0.0
    assume(expected > 1e-3)
    assert (
        p == pytest.approx(min(expected, 1.0), rel=2e-3, abs=1e-6)
        or abs(1 / (1 + np.tanh(p * half) ** 2) - target)
        <= 1.01e-6 * (1 - 1 / (1 + np.tanh(half) ** 2)) + 1e-15
    )


@given(st.lists(st.tuples(trajectories, fractions), min_size=2, max_size=5))
def test_law_trajectories_solved_together_and_alone_agree(pairs: list[tuple[np.ndarray, float]]) -> None:
    pairs = [(x, f) for x, f in pairs if np.ptp(x) > 1e-5]
    assume(len(pairs) >= 2)
    width = max(len(x) for x, _ in pairs)
    x, mask = (
        torch.zeros(len(pairs), width, dtype=torch.float64),
        torch.zeros(len(pairs), width, dtype=torch.bool),
    )
    for row, (values, _) in enumerate(pairs):
        x[row, : len(values)], mask[row, : len(values)] = torch.from_numpy(values), True
    tokens = centre(x, mask)
    f = torch.tensor([fraction for _, fraction in pairs], dtype=torch.float64)
    at_1 = deficit_at_1(tokens)
    together = solve_exponent(tokens, interpolated_deficit(f, at_1), at_1, (1 - f).sqrt())
    for row, (values, fraction) in enumerate(pairs):
        assert_on_target(values, together[row].item(), fraction, 1.01e-6)


@pytest.mark.parametrize("spread", [1e-1, 1e-3, 1e-5, 1e-7])
@pytest.mark.parametrize("fraction", [0.05, 0.5, 0.95])
def test_law_small_spread_gives_the_square_root_rule(spread: float, fraction: float) -> None:
    x = np.random.default_rng(0).normal(size=200) * spread
    p, _ = solve(x, fraction)
    assert p == pytest.approx(sqrt(1 - fraction), rel=max(0.2 * spread, 2e-6))


@pytest.mark.parametrize("scale", [0.05, 0.3, 2.0, 6.0])
def test_agrees_with_a_scalar_root_finder(scale: float) -> None:
    generator = np.random.default_rng(1)
    for fraction in (0.01, 0.1, 0.6, 0.99):
        x = np.clip(generator.normal(size=300) * scale, -20, 0.4)
        p, target = solve(x, fraction)
        expected = brentq(lambda q, x=x, n=target: float(long_ess(x, q)) - n, 0.0, 1.0, xtol=1e-14)
        assert p == pytest.approx(expected, abs=1e-5)


@given(trajectories, st.floats(0.05, 0.95))
def test_slope_is_the_derivative_of_log_n(x: np.ndarray, p: float) -> None:
    assume(np.ptp(x) > 1e-3)
    tokens = centred(x)
    found = evaluate(tokens.z, tokens.tokens, torch.tensor([p], dtype=torch.float64)).slope.item()
    h = 1e-4
    higher, lower = np.log(long_ess(x, sqrt(p * p + h))), np.log(long_ess(x, sqrt(p * p - h)))
    assert found == pytest.approx(float((higher - lower) / (2 * h)), rel=1e-2, abs=1e-6)


def test_a_target_below_n_at_1_leaves_p_at_1() -> None:
    tokens = centred(np.array([0.3, -0.2, 0.1]))
    at_1 = deficit_at_1(tokens)
    for target in (at_1, at_1 * 1.5, absolute_deficit(torch.zeros(1, dtype=torch.float64), tokens.tokens)):
        assert solve_exponent(tokens, target, at_1, torch.full((1,), 0.5, dtype=torch.float64)).item() == 1.0


def test_no_trajectory_is_no_work() -> None:
    nothing = torch.zeros(0, dtype=torch.float64)
    tokens = CentredTokens(torch.zeros(0, 3), nothing, torch.zeros(0, 3, dtype=torch.bool), nothing)
    assert solve_exponent(tokens, nothing, nothing, nothing).numel() == 0
