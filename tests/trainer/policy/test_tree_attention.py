"""All ways of attending in a tree give what each token's own path gives, in value and gradient."""

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.functional import scaled_dot_product_attention

from tests.support.trajectories import trajectories
from trainer.policy import flash
from trainer.policy.chains import by_chains
from trainer.policy.flex import BLOCK, block_mask, by_flex
from trainer.policy.token_tree import Attend, TokenTree, micro_batches, padded
from trainer.policy.tree_attention import dense
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


def by_sequences(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    scale: float | None,
) -> Tensor:
    """What FlashAttention gives for sequences of unequal length, one after another."""
    found = []
    for (start, end), (first, last) in zip(
        pairwise(query_starts.tolist()), pairwise(key_starts.tolist()), strict=True
    ):
        queries, keys = end - start, last - first
        assert 0 < queries <= longest_query
        assert queries <= keys <= longest_key
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        here = (query[start:end], key[first:last], value[first:last])
        each = (one.transpose(0, 1)[None] for one in here)
        out = scaled_dot_product_attention(*each, attn_mask=mask, scale=scale, enable_gqa=True)
        found.append(out[0].transpose(0, 1))
    return torch.cat(found)


@given(given_=trajectories(), more=st.sampled_from([1, 16]))
def test_law_chains_as_sequences_give_each_token_its_path(given_: Trajectories, more: int) -> None:
    """The indices of `by_flash`; FlashAttention itself runs in tests/gpu."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(flash, "attend_to_ends", by_sequences)
        for tree in micro_batches(given_, 30):
            whole = padded(tree, more)
            real = slice(0, tree.size)
            query, key, value = (one.detach() for one in inputs(whole.size))
            given_here = [one[:, :, real].clone().requires_grad_() for one in (query, key, value)]
            rest = [one[:, :, tree.size :] for one in (query, key, value)]
            expected = path_by_path(tree, *given_here)
            joined = [torch.cat(pair, dim=2) for pair in zip(given_here, rest, strict=True)]
            found = flash.by_flash(whole)(*joined, None)[:, :, real]
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
            up = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
            for ours, theirs in zip(
                torch.autograd.grad(found, given_here, up),
                torch.autograd.grad(expected, given_here, up),
                strict=True,
            ):
                torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


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


@pytest.mark.slow
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


@pytest.mark.parametrize("mode", [0, 1])
def test_flashs_backward_pass_on_cuda_is_strict_where_a_run_asks_for_warnings(
    mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's kernel looks at the mode: with warnings alone it adds up in whatever order blocks end."""
    modes: list[int] = []

    def kernel(*_given: object, **_named: object) -> tuple[Tensor, ...]:
        modes.append(torch.get_deterministic_debug_mode())
        return torch.zeros(1), torch.zeros(1), torch.zeros(1)

    monkeypatch.setattr(torch.ops.aten, "_flash_attention_backward", kernel)
    flash.make_repeatable()
    before = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(mode)
    try:
        on_cuda = varlen._varlen_attn_backward._backend_fns["cuda"]
        on_cuda(*[torch.zeros(1)] * 8, 1, 1, True, torch.zeros(1), None, [-1, 0])
        assert torch.get_deterministic_debug_mode() == mode
    finally:
        torch.set_deterministic_debug_mode(before)
    assert modes == [2 if mode else 0]
