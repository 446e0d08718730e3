"""beta is adapted as TRL's AdaptiveKLController did it (Ziegler et al. 2019)."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from powermean.contracts.algorithms import Grpo
from trainer.objectives.reference_kl import BetaControl

positive = st.floats(1e-6, 1e3)


def as_trl(beta: float, kl: float, count: int, target: float, horizon: int) -> float:
    """trl 0.11's AdaptiveKLController.update."""
    proportional_error = min(max(kl / target - 1, -0.2), 0.2)
    return beta * (1 + proportional_error * count / horizon)


@given(positive, st.floats(0, 1e3), st.integers(1, 500), positive, st.integers(500, 100_000))
def test_law_it_is_trls(beta: float, kl: float, count: int, target: float, horizon: int):
    found = BetaControl(target, horizon).after(beta, kl, count)
    assert found == pytest.approx(as_trl(beta, kl, count, target, horizon), rel=1e-12)
    assert (found > beta) == (kl / target - 1 > 0) or found == beta


@given(positive, st.floats(0, 1e3), st.integers(1, 10**9), positive, st.integers(1, 100))
def test_law_it_stays_positive_and_moves_by_a_fifth_at_most(
    beta: float, kl: float, count: int, target: float, horizon: int
):
    assert 0.8 <= BetaControl(target, horizon).after(beta, kl, count) / beta <= 1.2000001


def test_it_rests_at_its_target_and_where_there_is_no_kl():
    control = BetaControl(0.1, 100)
    assert control.after(0.5, 0.1, 10) == 0.5
    assert control.after(0.5, math.nan, 10) == 0.5


def test_it_finds_the_beta_whose_kl_is_the_target():
    """Of a policy whose KL is 0.01 / beta."""
    control, beta = BetaControl(0.05, 1000), 1.0
    for _ in range(500):
        beta = control.after(beta, 0.01 / beta, 64)
    assert 0.01 / beta == pytest.approx(0.05, rel=1e-3)


def test_a_target_without_a_start_is_refused():
    with pytest.raises(ValueError, match="beta is 0 where it starts"):
        Grpo(kl_target=0.1)
