"""The laws of PMPO's exponent (docs/pmpo.md): the gradient at the solved p, and what moves p."""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from tests.support.law_settings import at_most
from tests.trainer.objectives.objective_batches import (
    Batch,
    algorithm,
    away_from_kinks,
    batches,
    run,
    same,
    textbook,
)
from trainer.objectives import Algorithm
from trainer.objectives.exponents import ExponentInputs, Exponents
from trainer.objectives.surrogates import PowerMeanSurrogate


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
