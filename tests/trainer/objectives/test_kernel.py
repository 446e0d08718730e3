"""The laws of every objective (docs/pmpo.md): what changes nothing, extremes, and weights of the sampler."""

from dataclasses import replace
from math import exp

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from powermean.contracts.algorithms import PowerMean
from powermean.contracts.replays import OBJECTIVES
from tests.support.law_settings import at_most
from tests.trainer.objectives.objective_batches import Batch, algorithm, batches, run, same, textbook
from trainer.objectives import Distance, batch_facts, build_algorithm, finite_rows

EVERY = list(OBJECTIVES)


# Invariances


@pytest.mark.parametrize("name", EVERY)
@at_most(25)
@given(
    batch=batches(largest=3.0),
    width=st.integers(0, 3),
    garbage=st.sampled_from([0.0, 5.0, torch.nan, -torch.inf]),
)
def test_law_padding_changes_nothing(name: str, batch: Batch, width: int, garbage: float) -> None:
    built = algorithm(name)
    facts = replace(batch.facts, max_tokens=9)
    rows = len(batch.x)
    wider = replace(
        batch,
        x=torch.cat(
            [torch.where(batch.mask, batch.x, garbage), torch.full((rows, width), garbage).double()], 1
        ),
        mask=torch.cat([batch.mask, torch.zeros(rows, width, dtype=torch.bool)], 1),
    )
    results = []
    for case in (batch, wider):
        leaf = case.x.clone().requires_grad_()
        out = built.loss(leaf, case.mask, case.advantages, facts, 0.3, 0.4)
        results.append((out, torch.autograd.grad(out.loss, leaf)[0]))
    (plain, gradient), (padded, padded_gradient) = results
    same(padded.loss, plain.loss)
    same(padded_gradient[:, : batch.x.shape[1]], gradient)
    assert (padded_gradient[~wider.mask] == 0).all()
    for key, values in plain.trajectories.items():
        torch.testing.assert_close(padded.trajectories[key], values, rtol=1e-9, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("name", EVERY)
@at_most(25)
@given(batch=batches(largest=3.0, rows=(2, 5)), random=st.randoms(use_true_random=False))
def test_law_permuting_trajectories_and_tokens_permutes_the_result(
    name: str, batch: Batch, random: object
) -> None:
    rows = torch.tensor(random.sample(range(len(batch.x)), len(batch.x)))  # type: ignore[attr-defined]
    columns = torch.tensor(random.sample(range(batch.x.shape[1]), batch.x.shape[1]))  # type: ignore[attr-defined]
    moved = Batch(batch.x[rows][:, columns], batch.mask[rows][:, columns], batch.advantages[rows])
    built = algorithm(name)
    (plain, gradient), (other, other_gradient) = run(built, batch), run(built, moved)
    same(other.loss, plain.loss)
    same(other_gradient, gradient[rows][:, columns])
    for key, values in plain.trajectories.items():
        torch.testing.assert_close(
            other.trajectories[key], values[rows], rtol=1e-8, atol=1e-8, equal_nan=True
        )


@pytest.mark.parametrize("name", EVERY)
@at_most(25)
@given(batch=batches(largest=3.0, rows=(2, 6)), cut=st.integers(1, 5))
def test_law_micro_batches_add_up(name: str, batch: Batch, cut: int) -> None:
    assume(cut < len(batch.x))
    built, facts = algorithm(name), batch.facts
    whole, gradient = run(built, batch)
    losses, gradients, distance = [], [], Distance()
    for rows in (slice(0, cut), slice(cut, None)):
        leaf = batch.x[rows].clone().requires_grad_()
        part = built.loss(leaf, batch.mask[rows], batch.advantages[rows], facts, 0.3, 0.4)
        losses.append(part.loss)
        gradients.append(torch.autograd.grad(part.loss, leaf)[0])
        distance += part.distance
    same(torch.stack(losses).sum(), whole.loss)
    same(torch.cat(gradients), gradient)
    assert float(distance.to_grpo) == pytest.approx(float(whole.distance.to_grpo), rel=1e-6, abs=1e-12)
    assert float(distance.of_gmpo) == pytest.approx(float(whole.distance.of_gmpo), rel=1e-6, abs=1e-12)


# Extremes


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@at_most(10)
@given(batch=batches(largest=1e4))
def test_law_extreme_log_ratios_stay_finite(name: str, dtype: torch.dtype, batch: Batch) -> None:
    leaf = batch.x.to(dtype).requires_grad_()
    out = algorithm(name).loss(leaf, batch.mask, batch.advantages, batch.facts, 0.9, 0.4)
    (gradient,) = torch.autograd.grad(out.loss, leaf)
    assert torch.isfinite(out.loss)
    assert torch.isfinite(gradient).all()
    assert torch.isfinite(out.token_weights).all()
    for values in out.trajectories.values():
        assert not torch.isinf(values).any()
    if name != "cispo":
        assert (gradient[batch.x.to(dtype).abs() > 20] == 0).all()


def test_an_overflowing_token_is_counted_and_has_no_gradient() -> None:
    batch = Batch(
        torch.tensor([[25.0, 0.0], [25.0, 0.0]]).double(),
        torch.ones(2, 2, dtype=torch.bool),
        torch.tensor([-1.0, 1.0]).double(),
    )
    out, gradient = run(algorithm("grpo"), batch)
    assert out.trajectories["overflow_tokens"].tolist() == [1.0, 0.0]
    assert gradient[0, 0] == 0
    assert out.clipped.tolist() == [[True, False], [True, False]]
    assert out.trajectories["loss"][0].item() == pytest.approx((exp(20) + 1) / 4)
    # the number that is plotted leaves it out, and keeps -(1.2 + 1) / 4 of the other trajectory
    assert out.recorded_loss.item() == pytest.approx(-0.55)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("p", [-1.0, 0.0, 0.5, 1.0])
def test_where_all_ratios_are_1_there_is_no_distance(p: float, dtype: torch.dtype) -> None:
    """Not what rounding makes of 0 / 0."""
    lengths = torch.arange(1, 40)
    mask = torch.arange(40) < lengths[:, None]
    batch = Batch(torch.zeros(mask.shape, dtype=dtype), mask, torch.linspace(-2, 2, 39).double())
    out, _ = run(build_algorithm(PowerMean(p=p)), batch)
    assert out.distance.value is None
    noise = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
    apart = Batch(1e-3 * noise, mask, batch.advantages)
    out, _ = run(build_algorithm(PowerMean(p=p)), apart)
    assert out.distance.value == pytest.approx(abs(1 - p), abs=0.01)


def test_trajectories_without_tokens_or_advantage() -> None:
    x = torch.tensor([[0.5, 0.1], [0.5, 0.1], [0.5, 0.5]]).double()
    mask = torch.tensor([[True, True], [False, False], [True, True]])
    batch = Batch(x, mask, torch.tensor([0.0, 1.0, 1.0]).double())
    assert (batch.facts.trajectories, batch.facts.tokens) == (2, 4)
    out, gradient = run(algorithm("pmpo"), batch)
    assert (gradient[:2] == 0).all()
    for key in ("p", "ess", "ess_at_1", "ess_target", "clip_fraction"):
        assert torch.isnan(out.trajectories[key][:2]).all(), key
    assert torch.isnan(out.trajectories["loss"]).tolist() == [False, True, False]
    # equal ratios: p is undefined, every p gives the same loss, and A = 0 still counts in B
    assert torch.isnan(out.trajectories["p"][2])
    assert out.loss.item() == pytest.approx(-exp(0.4) / 2)


def test_a_batch_without_any_token_is_an_error() -> None:
    mask = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="no trajectory"):
        algorithm("pmpo").loss(torch.zeros(2, 3), mask, torch.ones(2), batch_facts(mask))


def test_shapes_that_differ_are_an_error() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        algorithm("pmpo").loss(torch.zeros(2, 4), mask, torch.ones(2), batch_facts(mask))


def test_finite_rows_ignores_padding() -> None:
    x = torch.tensor([[torch.nan, 0.0], [torch.nan, 0.0], [torch.inf, 0.0], [1e4, 0.0]])
    mask = torch.tensor([[False, True], [True, True], [True, False], [True, True]])
    assert finite_rows(x, mask).tolist() == [True, False, False, True]


# Distance to GRPO


@given(batches(largest=2.0, tokens=(2, 9)))
def test_law_distance_is_0_at_p_1_and_1_at_p_0(batch: Batch) -> None:
    at_1, at_0 = (run(build_algorithm(PowerMean(p=p)), batch)[0].distance for p in (1.0, 0.0))
    assert float(at_1.to_grpo) == 0
    assert at_0.value is None or at_0.value == pytest.approx(1.0)
    out, gradient = run(algorithm("pmpo"), batch)
    found, ones = out.distance, torch.ones_like(batch.advantages)
    _, arithmetic = textbook(batch, ones, 0.4, 0.4)
    near = ((batch.x.abs() - 0.4).abs() < 1e-9).any()
    assume(not near)
    assert float(found.to_grpo) == pytest.approx(
        (gradient - arithmetic).square().sum().item(), rel=1e-6, abs=1e-12
    )


# The sampler's weights


@given(batches(), st.floats(0.1, 2.0))
def test_law_a_sequence_weight_multiplies_the_loss(batch: Batch, weight: float) -> None:
    built = algorithm("pmpo")
    plain, gradient = run(built, batch)
    out, found = run(built, batch, importance_sampling_ratio=torch.full_like(batch.advantages, weight))
    same(out.loss, plain.loss * weight)
    same(found, gradient * weight)
    torch.testing.assert_close(out.trajectories["p"], plain.trajectories["p"], equal_nan=True)


@given(batches(), st.floats(0.1, 2.0))
def test_law_a_token_weight_scales_only_the_gradient(batch: Batch, weight: float) -> None:
    built = algorithm("pmpo")
    weights = torch.linspace(weight, 2 * weight, batch.x.numel()).reshape(batch.x.shape).double()
    plain, gradient = run(built, batch)
    out, found = run(built, batch, importance_sampling_ratio=weights)
    same(out.loss, plain.loss)
    same(found, gradient * weights)
    for key in ("p", "ess", "clip_fraction", "log_mean"):
        torch.testing.assert_close(out.trajectories[key], plain.trajectories[key], equal_nan=True)


def test_float32_and_bfloat16_inputs_are_worked_in_float32() -> None:
    x = torch.linspace(-1, 1, 24).reshape(2, 12)
    mask, a = torch.ones(2, 12, dtype=torch.bool), torch.tensor([1.0, -1.0])
    for dtype in (torch.float32, torch.bfloat16):
        leaf = x.clone().to(dtype).requires_grad_()
        out = algorithm("pmpo").loss(leaf, mask, a, batch_facts(mask))
        out.loss.backward()
        assert out.loss.dtype == torch.float32
        assert leaf.grad is not None
        assert leaf.grad.dtype == dtype
        exact, _ = run(algorithm("pmpo"), Batch(leaf.detach().double(), mask, a.double()))
        assert out.loss.item() == pytest.approx(exact.loss.item(), rel=1e-5)
        same(out.trajectories["p"], exact.trajectories["p"], 1e-5)
