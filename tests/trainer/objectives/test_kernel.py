"""The laws of the objective (docs/pmpo.md): value and gradient in float64."""

import itertools
from dataclasses import dataclass, replace
from math import exp

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec, Gmpo, Grpo, Pmpo, PowerMean
from powermean.contracts.replays import OBJECTIVES
from tests.support.law_settings import at_most
from tests.trainer.objectives.objective_batches import Batch, batches, clipped, run, textbook_log_mean
from trainer.objectives import Algorithm, Distance, batch_facts, build_algorithm, finite_rows
from trainer.objectives.exponents import ExponentInputs, Exponents
from trainer.objectives.surrogates import PowerMeanSurrogate

EVERY = list(OBJECTIVES)


def algorithm(name: str, **fields: object) -> Algorithm:
    if name == "power_mean":
        fields = {"p": -0.7} | fields
    return build_algorithm(TypeAdapter(AlgorithmSpec).validate_python({"name": name} | fields))


def same(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def textbook(batch: Batch, p: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """-(1/B) sum A M_p of the clipped ratios and its gradient, by the definition and autograd."""
    leaf = batch.x.clone().requires_grad_()
    some = batch.mask.any(-1)
    ratios = clipped(replace(batch, x=leaf), low, high)
    means = textbook_log_mean(ratios[some], batch.mask[some], p[some]).exp()
    loss = -(batch.advantages[some] * means).sum() / some.sum()
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss, gradient


def away_from_kinks(batch: Batch, *bounds: float, gap: float = 1e-3) -> Batch:
    x = batch.x.clone()
    for bound in bounds:
        x = torch.where((x - bound).abs() < gap, bound + 2 * gap, x)
    return replace(batch, x=x)


@dataclass(frozen=True)
class Held:
    """The given p for each trajectory."""

    p: Tensor
    largest: float = 1.0

    def __call__(self, situation: ExponentInputs) -> Exponents:
        return Exponents(self.p, situation.fractions.active, torch.full_like(self.p, torch.nan))


def held_at(built: Algorithm, p: Tensor) -> Algorithm:
    assert isinstance(built.surrogate, PowerMeanSurrogate)
    return replace(built, surrogate=replace(built.surrogate, exponent=Held(p)))


# Special cases


@given(batches(largest=3.0))
def test_law_pmpo_without_clipping_is_seq_mean_token_mean_grpo(batch: Batch) -> None:
    # nothing binds; on the other side, where no clip acts, ratios are as they come
    positive = (batch.advantages >= 0)[:, None]
    batch = replace(batch, x=torch.where(positive, batch.x.clamp(max=0.39), batch.x.clamp(min=-0.39)))
    value, gradient = textbook(batch, torch.ones_like(batch.advantages), 0.4, 0.4)
    out, found = run(algorithm("pmpo"), batch)
    same(out.loss, value)
    same(found, gradient)
    grpo, grpo_gradient = run(algorithm("grpo", epsilon_low=1 - exp(-0.4), epsilon_high=exp(0.4) - 1), batch)
    same(out.loss, grpo.loss)
    same(found, grpo_gradient)


@given(batches())
def test_law_pmpo_is_gmpo_where_all_that_may_be_clipped_is(batch: Batch) -> None:
    built = algorithm("pmpo", clip_fraction_full=1e-9)  # one clipped token is as good as all
    out, found = run(built, batch)
    p, f = out.trajectories["p"], out.trajectories["clip_fraction"]
    assert (p[(f > 0) & ~p.isnan()] == 0).all()
    assert (p[(f == 0) & ~p.isnan()] == 1).all()
    gmpo, gmpo_gradient = run(algorithm("gmpo"), batch)
    same(found[f > 0], gmpo_gradient[f > 0])
    same(out.trajectories["loss"][f > 0], gmpo.trajectories["loss"][f > 0])


@given(batches())
def test_law_power_mean_1_is_grpo_and_0_is_gmpo(batch: Batch) -> None:
    one, one_gradient = run(algorithm("power_mean", p=1.0), batch)
    grpo, grpo_gradient = run(algorithm("grpo", epsilon_low=1 - exp(-0.4), epsilon_high=exp(0.4) - 1), batch)
    same(one.loss, grpo.loss)
    same(one_gradient, grpo_gradient)
    nought, nought_gradient = run(algorithm("power_mean", p=0.0), batch)
    gmpo, gmpo_gradient = run(algorithm("gmpo"), batch)
    same(nought.loss, gmpo.loss)
    same(nought_gradient, gmpo_gradient)


@given(batches(largest=3.0), st.floats(-3, 3))
def test_law_power_mean_is_its_definition(batch: Batch, p: float) -> None:
    assume(abs(p) > 0.01)
    batch = away_from_kinks(batch, 0.4, -0.4)
    value, gradient = textbook(batch, torch.full_like(batch.advantages, p), 0.4, 0.4)
    out, found = run(algorithm("power_mean", p=p), batch)
    same(out.loss, value, 1e-9)
    same(found, gradient, 1e-9)


@given(batches())
def test_gmpo_is_its_papers_formula_in_numpy(batch: Batch) -> None:
    """2507.20673: per token min[r^s, clip(r)^s]^s with s = sgn A, then the geometric mean, times A."""
    mask, x, a = batch.mask.numpy(), batch.x.numpy(), batch.advantages.numpy()
    total, gradient, rows = 0.0, np.zeros_like(x), int(mask.any(-1).sum())
    for i in range(len(a)):
        ratio, sign = np.exp(x[i, mask[i]]), (1.0 if a[i] >= 0 else -1.0)
        if not len(ratio):
            continue
        inside = np.minimum(ratio**sign, np.clip(ratio, np.exp(-0.4), np.exp(0.4)) ** sign) ** sign
        mean = np.prod(inside) ** (1 / len(ratio))
        total -= a[i] * mean / rows
        gradient[i, mask[i]] = (
            -a[i] * mean / rows / len(ratio) * (np.abs(np.log(inside) - x[i, mask[i]]) < 1e-12)
        )
    out, found = run(algorithm("gmpo"), batch)
    assert out.loss.item() == pytest.approx(total, abs=1e-10)
    near = np.abs(np.abs(x) - 0.4) < 1e-9
    np.testing.assert_allclose(np.where(near, 0, found.numpy()), np.where(near, 0, gradient), atol=1e-10)


@given(batches())
def test_law_on_policy_every_mean_is_the_same(batch: Batch) -> None:
    batch = replace(batch, x=torch.zeros_like(batch.x))
    reference, gradient = run(algorithm("grpo"), batch)
    for name in ("pmpo", "gmpo", "power_mean", "holder", "apmpo", "gspo"):
        out, found = run(algorithm(name), batch)
        same(out.loss, reference.loss)
        same(found, gradient)


# PMPO's gradient


@given(batches(tokens=(2, 9)))
def test_law_gradient_is_minus_a_m_i_w_at_the_solved_p(batch: Batch) -> None:
    batch = away_from_kinks(batch, 0.4, -0.4, 20.0, -20.0)
    out, found = run(algorithm("pmpo", clip_fraction_full=0.5), batch)
    p = out.trajectories["p"].nan_to_num(1.0)
    value, gradient = textbook(batch, p, 0.4, 0.4)
    same(out.loss, value, 1e-8)
    same(found, gradient, 1e-8)


@pytest.mark.slow
@at_most(60)
@given(
    batches(rows=(1, 3), tokens=(1, 5)),
    st.sampled_from(["pmpo", "gmpo", "holder", "gspo", "dr_grpo", "dapo"]),
)
def test_law_finite_differences_agree_with_p_held(batch: Batch, name: str) -> None:
    built = algorithm(name)
    batch = away_from_kinks(batch, 0.4, -0.4, np.log(1.2), np.log(0.8), np.log(1.28))
    out, _ = run(built, batch)
    means = out.trajectories["log_mean"]
    edges = torch.tensor([np.log(1.2), np.log(0.8), np.log1p(-3e-4), np.log1p(4e-4)])
    if name in ("holder", "gspo"):
        assume(((means.nan_to_num(9.0)[:, None] - edges).abs() > 1e-4).all())
    frozen = held_at(built, out.trajectories["p"])
    leaf = batch.x.clone().requires_grad_()

    def loss(x: Tensor) -> Tensor:
        return frozen.loss(x, batch.mask, batch.advantages, batch.facts, 0.3, 0.4).loss

    assert torch.autograd.gradcheck(loss, (leaf,), eps=1e-6, atol=1e-6)


@given(batches(largest=3.0, tokens=(2, 9)))
def test_law_no_gradient_passes_through_p(batch: Batch) -> None:
    built = algorithm("pmpo")
    out, gradient = run(built, batch)
    assert not any(values.requires_grad for values in out.trajectories.values())
    assert not out.token_weights.requires_grad
    _, held = run(held_at(built, out.trajectories["p"].nan_to_num(1.0)), batch)
    same(gradient, held, 1e-13)


@given(batches(largest=3.0, tokens=(2, 9)), st.lists(st.floats(0.05, 1), min_size=2, max_size=4))
def test_law_more_clip_fraction_never_raises_p(batch: Batch, full: list[float]) -> None:
    # a smaller clip_fraction_full raises f_eff and leaves the clipped ratios alone
    found = [
        run(algorithm("pmpo", clip_fraction_full=f1), batch)[0].trajectories["p"].nan_to_num(1.0)
        for f1 in sorted(full)
    ]
    for smaller, larger in itertools.pairwise(found):
        assert (smaller <= larger + 1e-5).all()


@given(batches(largest=4.0, tokens=(2, 9)), st.sampled_from(["interpolate", "absolute"]))
def test_law_recorded_ess_meets_the_recorded_target(batch: Batch, target: str) -> None:
    seen = run(algorithm("pmpo", ess_target=target), batch)[0].trajectories
    p, ess, at_1, goal = seen["p"], seen["ess"], seen["ess_at_1"], seen["ess_target"]
    defined = ~torch.isnan(p)
    on_target = (ess - goal).abs() <= 1.01e-6 * (1 - at_1) + 1e-14
    at_bound = (p == 1) & (goal <= at_1 + 1e-12)
    assert (on_target | at_bound)[defined].all()
    assert torch.isnan(goal[~defined]).all()


@given(batches(largest=4.0, tokens=(2, 9)))
def test_options_change_what_drives_p(batch: Batch) -> None:
    active, _ = run(algorithm("pmpo"), batch)
    outside, _ = run(algorithm("pmpo", clip_fraction="outside"), batch)
    root, _ = run(algorithm("pmpo", ess_target="square_root"), batch)
    wide, _ = run(algorithm("pmpo", ess_clip_range=(19.0, 19.0)), batch)
    defined = ~torch.isnan(active.trajectories["p"])
    f = active.trajectories["clip_fraction"]
    same(
        outside.trajectories["clip_fraction"][defined], active.trajectories["clip_fraction_outside"][defined]
    )
    same(root.trajectories["p"][defined], (1 - f).sqrt()[defined])
    assert (wide.trajectories["p"][defined] == 1).all()
    assert (wide.clipped == active.clipped).all()


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


def test_specs_of_the_special_cases_share_the_kernel() -> None:
    built = [build_algorithm(spec) for spec in (Pmpo(), Grpo(), Gmpo(), PowerMean(p=0.5))]
    assert all(isinstance(one.surrogate, PowerMeanSurrogate) for one in built)
