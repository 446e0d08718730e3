"""Groups stay together and padding stays outside the mask."""

import pytest
import torch

from powermean.contracts.rollout import Completion, VersionSpan
from trainer.rollouts.batching import Rollouts, collate, minibatches


def completion(*tokens: int, cut: bool = False, versions: tuple[int, ...] = (3,)) -> Completion:
    spans = tuple(VersionSpan(version=version, start=0, end=len(tokens)) for version in versions)
    return Completion(
        token_ids=tokens,
        logprobs=tuple(-float(token) for token in tokens),
        finish_reason="length" if cut else "stop",
        weight_versions=spans,
    )


@pytest.fixture
def rollouts() -> Rollouts:
    """Three groups of two; token 9 ends a completion."""
    completions = [
        [completion(1, 9), completion(2, 2, 2, cut=True)],
        [completion(9), completion(3, 9, versions=(4, 2))],
        [completion(), completion(9, 9, 9)],
    ]
    return collate([(5,), (6, 7), (8, 8, 8)], completions, pad_token_id=0)


def test_collate_keeps_every_token_and_pads_on_the_right(rollouts: Rollouts) -> None:
    assert rollouts.tokens.tolist() == [[1, 9, 0], [2, 2, 2], [9, 0, 0], [3, 9, 0], [0, 0, 0], [9, 9, 9]]
    assert rollouts.lengths.tolist() == [2, 3, 1, 2, 0, 3]
    assert rollouts.mask.sum() == 11
    assert rollouts.sampler_log_probs[0].tolist() == [-1.0, -9.0, 0.0]
    assert rollouts.truncated.tolist() == [False, True, False, False, False, False]
    assert rollouts.weight_version.tolist() == [3, 3, 3, 2, 3, 3]
    assert rollouts.group.tolist() == [0, 0, 1, 1, 2, 2]


def test_the_mask_does_not_come_from_token_values() -> None:
    """pad, end and anything else may be the same id."""
    rollouts = collate([(0,)], [[completion(0, 0), completion(0)]], pad_token_id=0)
    assert rollouts.mask.tolist() == [[True, True], [True, False]]


def test_trajectories_are_the_rows_tokens_without_padding(rollouts: Rollouts) -> None:
    found = rollouts.trajectories([2, 0, 1])
    assert found.prompts == [(6, 7), (5,), (5,)]
    assert found.completions == [[9], [1, 9], [2, 2, 2]]


def test_minibatches_deal_every_group_once_and_depend_on_the_generator_alone() -> None:
    dealt = minibatches(12, 3, torch.Generator().manual_seed(4))
    assert [len(groups) for groups in dealt] == [4, 4, 4]
    assert sorted(group for groups in dealt for group in groups) == list(range(12))
    assert dealt == minibatches(12, 3, torch.Generator().manual_seed(4))
    assert dealt != minibatches(12, 3, torch.Generator().manual_seed(5))
