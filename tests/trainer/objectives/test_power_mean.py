"""Laws of the power mean, its token weights and its effective sample size."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tests.trainer.objectives.objective_batches import (
    Batch,
    batches,
    log_ratios,
    long_ess,
    long_log_mean,
    long_weights,
)
from trainer.objectives.power_mean import PowerMean, centre, power_mean

LARGEST = 8.0
exponents = st.one_of(st.floats(-LARGEST, LARGEST), st.sampled_from([0.0, 1.0, 1e-9, -1e-7, 1e-5, 1e-3]))
trajectories = hnp.arrays(np.float64, st.integers(1, 12), elements=log_ratios(20.0))


def of(x: np.ndarray, p: float, dtype: torch.dtype = torch.float64, largest: float = LARGEST) -> PowerMean:
    tokens = torch.from_numpy(x).to(dtype)[None]
    mask = torch.ones_like(tokens)
    return power_mean(centre(tokens, mask, mask.sum(-1)), torch.tensor([p], dtype=dtype), largest)


@given(trajectories, exponents)
def test_law_value_weights_and_ess_are_the_definition(x: np.ndarray, p: float) -> None:
    found = of(x, p)
    assert found.log_mean.item() == pytest.approx(float(long_log_mean(x, p)), abs=1e-9)
    np.testing.assert_allclose(found.weights[0].numpy(), long_weights(x, p).astype(float), atol=1e-12)
    assert found.ess.item() == pytest.approx(float(long_ess(x, p)), rel=1e-11)


@given(trajectories)
def test_law_p_1_is_the_arithmetic_and_p_0_the_geometric_mean(x: np.ndarray) -> None:
    assert of(x, 1.0).log_mean.exp().item() == pytest.approx(float(np.exp(x).mean()), rel=1e-11)
    assert of(x, 0.0).log_mean.item() == pytest.approx(float(x.mean()), abs=1e-12)
    np.testing.assert_allclose(of(x, 0.0).weights[0].numpy(), 1 / len(x), atol=1e-15)


@given(batches(largest=25.0), exponents)
def test_law_weights_are_the_gradient_of_log_mean_and_sum_to_1(batch: Batch, p: float) -> None:
    x = torch.where(batch.mask, batch.x.clamp(-20, 20), 0.0)
    inside = batch.mask.double()
    found = power_mean(
        centre(x, inside, inside.sum(-1)), torch.full((len(x),), p, dtype=torch.float64), LARGEST
    )
    some = batch.mask.any(-1)
    torch.testing.assert_close(found.weights.sum(-1), some.double(), rtol=1e-12, atol=1e-12)
    assert (found.weights[~batch.mask] == 0).all()
    leaf = x.clone().requires_grad_()
    safe = p if abs(p) > 1e-6 else 1e-6  # the reference needs a p that divides
    lse = torch.logsumexp((safe * leaf).masked_fill(~batch.mask, -torch.inf)[some], -1) / safe
    (gradient,) = torch.autograd.grad(lse.sum(), leaf)
    torch.testing.assert_close(found.weights, gradient, rtol=0, atol=5e-5 if abs(p) <= 1e-6 else 1e-12)


@given(trajectories, st.lists(st.floats(0, LARGEST), min_size=2, max_size=5).map(sorted))
def test_law_ess_lies_in_its_range_and_falls_with_p(x: np.ndarray, rising: list[float]) -> None:
    found = [of(x, p).ess.item() for p in rising]
    assert all(1 / len(x) - 1e-12 <= n <= 1 + 1e-12 for n in found)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(found))
    assert of(x, 0.0).ess.item() == 1.0


@given(trajectories, st.lists(exponents, min_size=2, max_size=5).map(sorted))
def test_law_the_power_mean_rises_with_p(x: np.ndarray, rising: list[float]) -> None:
    found = [of(x, p).log_mean.item() for p in rising]
    assert all(later >= earlier - 1e-9 for earlier, later in itertools.pairwise(found))


@given(trajectories, st.floats(-15, 15), st.floats(0, 1))
def test_law_a_common_factor_moves_the_mean_and_not_the_weights(x: np.ndarray, by: float, p: float) -> None:
    plain, moved = of(x / 4, p), of(x / 4 + by, p)
    assert moved.log_mean.item() == pytest.approx(plain.log_mean.item() + by, abs=1e-10)
    torch.testing.assert_close(moved.weights, plain.weights, rtol=1e-9, atol=1e-12)


@given(hnp.arrays(np.float32, st.integers(1, 64), elements=st.floats(-20, 20, width=32)), st.floats(0, 1))
def test_float32_error_is_within_3e_6(x: np.ndarray, p: float) -> None:
    p = float(np.float32(p))
    found = of(x, p, torch.float32, largest=1.0)
    assert abs(found.log_mean.item() - float(long_log_mean(x, p))) <= 3e-6
    assert np.abs(found.weights[0].numpy() - long_weights(x, p).astype(float)).max() <= 3e-6
    assert abs(found.ess.item() - float(long_ess(x, p))) <= 6e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [1.0, 0.5, 1e-3, 1e-7])
def test_ratios_near_e_to_the_minus_15_stay_finite(dtype: torch.dtype, p: float) -> None:
    x = np.full(7, -15.0) + np.linspace(-1e-3, 1e-3, 7)
    found = of(x, p, dtype, largest=1.0)
    assert found.log_mean.item() == pytest.approx(-15.0, abs=3e-6)
    np.testing.assert_allclose(found.weights[0].double().numpy(), 1 / 7, atol=1e-3)


@pytest.mark.parametrize("p", [1e-3, 1e-4, 1e-5, 2e-6, 5e-7])
def test_float32_keeps_its_digits_near_p_0(p: float) -> None:
    x = np.array([0.3, -0.2, 0.1, 0.0, -0.4], dtype=np.float32)
    assert of(x, p, torch.float32).log_mean.item() == pytest.approx(float(long_log_mean(x, p)), abs=1e-7)


def test_one_token_and_equal_tokens_have_the_same_mean_at_every_p() -> None:
    for x in (np.array([0.7]), np.full(5, 0.7)):
        for p in (-3.0, 0.0, 0.5, 1.0):
            assert of(x, p).log_mean.item() == pytest.approx(0.7, abs=1e-12)
            assert of(x, p).ess.item() == pytest.approx(1.0, abs=1e-12)


def test_example_by_hand() -> None:
    # ratios 1 and 4: arithmetic 2.5, geometric 2, p = 1/2: ((1 + 2) / 2)^2 = 2.25, harmonic 1.6
    x = np.log([1.0, 4.0])
    for p, mean in ((1.0, 2.5), (0.0, 2.0), (0.5, 2.25), (-1.0, 1.6)):
        assert of(x, p).log_mean.exp().item() == pytest.approx(mean, rel=1e-12)
    # W(1) = (0.2, 0.8): N = 1 / (2 * 0.68)
    assert of(x, 1.0).ess.item() == pytest.approx(1 / 1.36, rel=1e-12)
