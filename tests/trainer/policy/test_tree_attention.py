"""All ways of attending in a tree give what each token's own path gives, in value and gradient."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from tests.support.trajectories import trajectories
from trainer.policy.token_tree import TokenTree, micro_batches, padded
from trainer.policy.tree_attention import BLOCK, Attend, block_mask, by_chains, by_flex, dense
from trainer.rollouts.batching import Trajectories

HEADS, GROUPS, SIZE = 4, 2, 8


def path_by_path(tree: TokenTree, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    rows = []
    for node, sees in enumerate(tree.mask()):
        path = sees.nonzero()[:, 0]
        here = (query[:, :, node : node + 1], key[:, :, path], value[:, :, path])
        rows.append(scaled_dot_product_attention(*here, enable_gqa=True))
    return torch.cat(rows, dim=2)


def inputs(size: int) -> list[Tensor]:
    chance = torch.Generator().manual_seed(size)
    shapes = ((1, HEADS, size, SIZE), (1, GROUPS, size, SIZE), (1, GROUPS, size, SIZE))
    return [torch.randn(shape, generator=chance, dtype=torch.float64).requires_grad_() for shape in shapes]


def assert_same(tree: TokenTree, attend: Attend) -> None:
    given_ = inputs(tree.size)
    expected, found = path_by_path(tree, *given_), attend(*given_, None)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    up = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for ours, theirs in zip(
        torch.autograd.grad(found, given_, up), torch.autograd.grad(expected, given_, up), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("way", [dense, by_chains])
@given(given_=trajectories())
def test_law_a_token_sees_its_path_alone(way: Callable[[TokenTree], Attend], given_: Trajectories) -> None:
    for tree in micro_batches(given_, 30):
        assert_same(tree, way(tree))


def long_trajectories(seed: int) -> Trajectories:
    """Trees of several of FlexAttention's blocks: long shared beginnings, long branches, short ones."""
    chance = torch.Generator().manual_seed(seed)

    def draw(low: int, high: int) -> list[int]:
        length = int(torch.randint(low, high, (), generator=chance))
        return torch.randint(0, 12, (length,), generator=chance).tolist()

    prompts, completions = [], []
    for _ in range(2):
        prompt, begun = draw(1, 200), draw(1, 150)
        for number in range(3):
            prompts.append(prompt)
            completions.append([*begun, *draw(1, 150)] if number else draw(1, 150))
    return Trajectories(prompts, completions)


@pytest.mark.parametrize("seed", range(3))
def test_flex_attention_sees_paths_alone(seed: int) -> None:
    """Not compiled, and without a backward pass: it has none on a CPU (tests/gpu)."""
    for tree in micro_batches(long_trajectories(seed), 2000):
        whole = padded(tree, BLOCK)
        with torch.no_grad():
            given_ = [one.detach() for one in inputs(whole.size)]
            expected, found = path_by_path(whole, *given_), by_flex(whole)(*given_, None)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


@given(st.integers(0, 1000))
def test_law_the_block_mask_is_the_mask_by_blocks(seed: int) -> None:
    for tree in micro_batches(long_trajectories(seed), 2000):
        whole = padded(tree, BLOCK)
        mask = whole.mask().view(whole.size // BLOCK, BLOCK, -1, BLOCK).transpose(1, 2)
        any_seen, all_seen = mask.any(-1).any(-1), mask.all(-1).all(-1)
        found = block_mask(whole)
        full = _as_matrix(found.full_kv_num_blocks, found.full_kv_indices)
        part = _as_matrix(found.kv_num_blocks, found.kv_indices)
        assert not (full & ~all_seen).any()
        assert torch.equal(full | part, any_seen)
        assert not (full & part).any()


def _as_matrix(count: Tensor | None, index: Tensor | None) -> Tensor:
    assert count is not None
    assert index is not None
    count, index = count[0, 0], index[0, 0]
    found = torch.zeros(index.shape, dtype=torch.bool)
    for row, number in enumerate(count.tolist()):
        found[row, index[row, :number].long()] = True
    return found


def test_a_tree_that_is_not_padded_is_refused() -> None:
    (tree,) = micro_batches(Trajectories([[1]], [[2, 3]]), 10)
    with pytest.raises(ValueError, match="multiple of 128"):
        block_mask(tree)
