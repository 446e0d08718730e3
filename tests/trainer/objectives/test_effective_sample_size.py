"""Laws of the solver: the solved p meets its target, at every scale, alone or in a batch."""

import itertools
from math import atanh, sqrt

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.optimize import brentq

from tests.trainer.objectives.objective_batches import log_ratios, long_ess
from trainer.objectives.effective_sample_size import (
    absolute_deficit,
    evaluate,
    interpolated_deficit,
    solve_exponent,
)
from trainer.objectives.power_mean import centre

fractions = st.floats(1e-6, 1 - 1e-6)
trajectories = hnp.arrays(np.float64, st.integers(2, 12), elements=log_ratios(20.0))
float32_trajectories = hnp.arrays(np.float32, st.integers(2, 40), elements=st.floats(-20, 20, width=32))


def centred(x: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """z [1, T] and T [1] of one trajectory."""
    values = torch.from_numpy(np.atleast_2d(x))
    ones = torch.ones_like(values)
    found = centre(values, ones, ones.sum(-1))
    return found.z.double(), found.tokens.double()


def solve(x: np.ndarray, fraction: float) -> tuple[float, float]:
    """p and N* for one trajectory by `interpolate`."""
    z, tokens = centred(x)
    f = torch.tensor([fraction], dtype=torch.float64)
    target = interpolated_deficit(f, at_1(z, tokens))
    return solve_exponent(z, tokens, target, (1 - f).sqrt()).item(), 1 - target.item()


def at_1(z: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """1 - N(1) [B]."""
    return evaluate(z, tokens, torch.ones_like(tokens)).deficit


def assert_on_target(x: np.ndarray, p: float, fraction: float, tolerance: float) -> None:
    whole = 1 - long_ess(x, 1.0)
    target = (1 - np.longdouble(fraction)) * whole
    assert abs((1 - long_ess(x, p)) - target) <= tolerance * whole + 1e-18


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
    x = torch.zeros(len(pairs), width, dtype=torch.float64)
    mask = torch.zeros_like(x)
    for row, (values, _) in enumerate(pairs):
        x[row, : len(values)], mask[row, : len(values)] = torch.from_numpy(values), 1.0
    found = centre(x, mask, mask.sum(-1))
    f = torch.tensor([fraction for _, fraction in pairs], dtype=torch.float64)
    target = interpolated_deficit(f, at_1(found.z, found.tokens))
    together = solve_exponent(found.z, found.tokens, target, (1 - f).sqrt())
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
    z, tokens = centred(x)
    found = evaluate(z, tokens, torch.tensor([p], dtype=torch.float64)).slope.item()
    h = 1e-4
    higher, lower = np.log(long_ess(x, sqrt(p * p + h))), np.log(long_ess(x, sqrt(p * p - h)))
    assert found == pytest.approx(float((higher - lower) / (2 * h)), rel=1e-2, abs=1e-6)


def test_a_target_below_n_at_1_leaves_p_at_1() -> None:
    z, tokens = centred(np.array([0.3, -0.2, 0.1]))
    nought = torch.zeros(1, dtype=torch.float64)
    for target in (at_1(z, tokens), at_1(z, tokens) * 1.5, absolute_deficit(nought, tokens)):
        assert solve_exponent(z, tokens, target, nought + 0.7).item() == 1.0


def test_no_trajectory_is_no_work() -> None:
    nothing = torch.zeros(0, dtype=torch.float64)
    assert solve_exponent(torch.zeros(0, 3, dtype=torch.float64), nothing, nothing, nothing).numel() == 0


@pytest.mark.parametrize("scale", [0.01, 0.1, 0.4, 1.5, 5.0])
@pytest.mark.parametrize("width", [64, 4096])
def test_float32_log_ratios_keep_the_promise(scale: float, width: int) -> None:
    generator = np.random.default_rng(width)
    x = np.clip(generator.normal(size=(40, width)) * scale, -20, 20).astype(np.float32)
    fractions = generator.uniform(0.01, 0.99, size=40)
    values = torch.from_numpy(x)
    found = centre(values, torch.ones_like(values), torch.full((40,), float(width)))
    f = torch.from_numpy(fractions)
    z, tokens = found.z.double(), found.tokens.double()
    solved = solve_exponent(z, tokens, interpolated_deficit(f, at_1(z, tokens)), (1 - f).sqrt())
    for row, p in enumerate(solved.tolist()):
        assert_on_target(x[row], p, fractions[row], 1e-6)


def test_stopping_when_all_have_arrived_changes_no_bit() -> None:
    """A row of equal ratios never arrives: waiting for it takes all the steps that there are."""
    x = np.random.default_rng(3).normal(size=(40, 32)) * np.geomspace(0.01, 8.0, 40)[:, None]
    z, tokens = centred(np.vstack([np.clip(x, -20, 20), np.zeros(32)]))
    f = torch.linspace(0.01, 0.99, 41, dtype=torch.float64)
    target = interpolated_deficit(f, at_1(z, tokens))
    real = torch.arange(41) < 40
    early = solve_exponent(z, tokens, target, (1 - f).sqrt(), real)
    assert torch.equal(early[real], solve_exponent(z, tokens, target, (1 - f).sqrt())[real])
