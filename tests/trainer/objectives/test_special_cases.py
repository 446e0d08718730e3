"""Objectives that are others' special cases (docs/pmpo.md): equal in value and gradient, in float64."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from powermean.contracts.algorithms import Gmpo, Grpo, Pmpo, PowerMean
from tests.trainer.objectives.objective_batches import (
    Batch,
    algorithm,
    away_from_kinks,
    batches,
    run,
    same,
    textbook,
)
from trainer.objectives import build_algorithm
from trainer.objectives.surrogates import PowerMeanSurrogate


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


@pytest.mark.slow
@given(batches())
def test_law_on_policy_every_mean_is_the_same(batch: Batch) -> None:
    batch = replace(batch, x=torch.zeros_like(batch.x))
    reference, gradient = run(algorithm("grpo"), batch)
    for name in ("pmpo", "gmpo", "power_mean", "holder", "apmpo", "gspo"):
        out, found = run(algorithm(name), batch)
        same(out.loss, reference.loss)
        same(found, gradient)


def test_specs_of_the_special_cases_share_the_kernel() -> None:
    built = [build_algorithm(spec) for spec in (Pmpo(), Grpo(), Gmpo(), PowerMean(p=0.5))]
    assert all(isinstance(one.surrogate, PowerMeanSurrogate) for one in built)
