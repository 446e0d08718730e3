"""Advantages within groups."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from trainer.objectives.advantages import has_spread, mean_centred, overlong_penalty, standardised

groups = st.lists(
    st.lists(st.sampled_from([0.0, 0.1, 1.0, -2.5, 0.3]), min_size=1, max_size=6), min_size=1, max_size=5
)


def flat(nested: list[list[float]]) -> tuple[torch.Tensor, torch.Tensor]:
    rewards = torch.tensor([r for rewards in nested for r in rewards], dtype=torch.float64)
    ids = torch.tensor([7 * place - 3 for place, rewards in enumerate(nested) for _ in rewards])
    return rewards, ids


@given(groups)
def test_law_standardised_is_numpys_formula_group_by_group(nested: list[list[float]]) -> None:
    rewards, ids = flat(nested)
    expected: list[float] = []
    for group in nested:
        values = np.array(group)
        std = values.std(ddof=1) if len(group) > 1 else 0.0
        expected += list((values - values.mean()) / (std + 1e-4))
    np.testing.assert_allclose(standardised(rewards, ids).numpy(), expected, atol=1e-9)


@given(groups, st.randoms(use_true_random=False))
def test_law_order_does_not_matter(nested: list[list[float]], random: object) -> None:
    rewards, ids = flat(nested)
    order = torch.tensor(random.sample(range(len(ids)), len(ids)))  # type: ignore[attr-defined]
    for rule in (standardised, mean_centred, has_spread):
        torch.testing.assert_close(rule(rewards[order], ids[order]), rule(rewards, ids)[order])


@given(groups)
def test_law_a_group_without_spread_is_exactly_0(nested: list[list[float]]) -> None:
    rewards, ids = flat(nested)
    flat_groups = torch.tensor([len(set(group)) == 1 for group in nested for _ in group])
    assert (has_spread(rewards, ids) == ~flat_groups).all()
    for rule in (standardised, mean_centred):
        assert (rule(rewards, ids)[flat_groups] == 0).all()


def test_examples_by_hand() -> None:
    rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.1, 0.1, 0.1], dtype=torch.float64)
    ids = torch.tensor([0, 0, 0, 0, 9, 9, 9])
    scale = (1 / 3) ** 0.5 + 1e-4
    expected = [0.5 / scale, -0.5 / scale, -0.5 / scale, 0.5 / scale, 0, 0, 0]
    np.testing.assert_allclose(standardised(rewards, ids).numpy(), expected, atol=1e-15)
    assert mean_centred(rewards, ids).tolist() == [0.5, -0.5, -0.5, 0.5, 0.0, 0.0, 0.0]


def test_overlong_penalty_grows_over_the_buffer() -> None:
    lengths = torch.tensor([0, 80, 85, 90, 100, 120])
    assert overlong_penalty(lengths, 100, 20, 1.0).tolist() == [0.0, 0.0, -0.25, -0.5, -1.0, -1.0]
    assert overlong_penalty(lengths, 100, 0, 1.0).tolist() == [0.0] * 6


def test_bad_rewards_are_refused() -> None:
    ids = torch.tensor([0, 0])
    with pytest.raises(ValueError, match="finite"):
        standardised(torch.tensor([1.0, float("nan")], dtype=torch.float64), ids)
    with pytest.raises(ValueError, match=r"must be \[N\]"):
        standardised(torch.zeros(3, dtype=torch.float64), ids)
