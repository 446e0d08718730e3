"""The one-sided clip is PPO's min(), and the fractions count what it touches."""

from math import exp, log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.objectives.objective_batches import Batch, batches
from trainer.objectives.clipping import ClipRange, clip_fractions, one_sided

ranges = st.builds(ClipRange, low=st.floats(0.01, 3), high=st.floats(0.01, 3))


@given(batches(largest=5.0), ranges)
def test_law_the_clip_is_the_minimum_of_ppo(batch: Batch, bounds: ClipRange) -> None:
    ratio, a = batch.x.exp(), batch.advantages[:, None]
    ppo = torch.minimum(ratio * a, ratio.clamp(exp(-bounds.low), exp(bounds.high)) * a)
    ours = one_sided(batch.x, batch.advantages, bounds).exp() * a
    torch.testing.assert_close(ours, ppo, rtol=1e-12, atol=1e-12)


@given(batches(largest=1e4), ranges)
def test_law_nothing_leaves_the_limit(batch: Batch, bounds: ClipRange) -> None:
    assert one_sided(batch.x, batch.advantages, bounds).abs().max() <= 20
    assert one_sided(batch.x, batch.advantages, None).abs().max() <= 20


@given(batches(largest=3.0), ranges)
def test_law_active_tokens_are_outside_and_bind(batch: Batch, bounds: ClipRange) -> None:
    x, tokens = batch.x * batch.mask, batch.mask.sum(-1)
    found = clip_fractions(x, tokens, batch.advantages, bounds)
    some = tokens > 0
    assert (found.active[some] <= found.outside[some]).all()
    assert torch.isnan(found.active[~some]).all()
    binds = ((one_sided(x, batch.advantages, bounds) != x) & (batch.advantages != 0)[:, None]).sum(-1)
    torch.testing.assert_close(found.active[some], (binds / tokens)[some].double(), rtol=1e-6, atol=1e-6)


def test_example_by_hand() -> None:
    x = torch.tensor([[0.5, -0.5, 0.1, 0.0]] * 3)
    a, tokens = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([4, 4, 4])
    bounds = ClipRange(0.4, 0.4)
    clipped = one_sided(x, a, bounds)
    expected = [[0.4, -0.5, 0.1, 0.0], [0.5, -0.4, 0.1, 0.0], [0.4, -0.5, 0.1, 0.0]]
    torch.testing.assert_close(clipped, torch.tensor(expected))
    found = clip_fractions(x, tokens, a, bounds)
    assert found.high.tolist() == [0.25, 0.0, 0.0]
    assert found.low.tolist() == [0.0, 0.25, 0.0]
    assert found.outside.tolist() == [0.5, 0.5, 0.5]


def test_ratio_ranges_become_log_ranges() -> None:
    bounds = ClipRange.from_ratio(0.2, 0.28)
    assert bounds.low == pytest.approx(-log(0.8))
    assert bounds.high == pytest.approx(log(1.28))


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.4), (0.4, -0.1), (float("nan"), 0.4)])
def test_an_empty_range_is_refused(low: float, high: float) -> None:
    with pytest.raises(ValueError, match="positive ends"):
        ClipRange(low, high)
