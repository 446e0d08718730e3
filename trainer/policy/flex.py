"""Attention in a tree by FlexAttention, compiled, with a mask by blocks: on CUDA what flash.py can't take."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from trainer.policy.token_tree import Attend, TokenTree

BLOCK = 128  # FlexAttention's block, and what trees on CUDA are padded to a multiple of
RECOMPILES = 32  # with and without gradients, by type, and whatever else torch tells apart


def by_flex(tree: TokenTree) -> Attend:
    """FlexAttention; the tree's size is a multiple of BLOCK."""
    return _Flex(block_mask(tree))


def block_mask(tree: TokenTree) -> BlockMask:
    """FlexAttention's mask of a tree whose size is a multiple of BLOCK.

    A block of keys is seen in part by a block of queries below it iff one of the keys' subtrees reaches into
    it, and whole iff all of them reach to its end.
    """
    end, blocks = tree.end, tree.size // BLOCK
    if blocks * BLOCK != tree.size:
        raise ValueError(f"a tree of {tree.size} nodes is not padded to a multiple of {BLOCK}")
    lowest, highest = (getattr(end.view(blocks, BLOCK), name)(-1) for name in ("amin", "amax"))
    first = torch.arange(blocks, device=end.device) * BLOCK  # node of each block
    query, key = first[:, None], first[None, :]
    whole = (key < query) & (lowest[None, :] >= query + BLOCK)
    part = ((key < query) & (highest[None, :] > query) & ~whole) | (key == query)

    def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key <= query) & (query < end[key])

    part_count, part_index = _ordered(part)
    whole_count, whole_index = _ordered(whole)
    return BlockMask.from_kv_blocks(
        part_count, part_index, whole_count, whole_index, BLOCK_SIZE=BLOCK, mask_mod=sees
    )


def _ordered(present: Tensor) -> tuple[Tensor, Tensor]:
    """Bool [Q, K] as FlexAttention has it: number [1, 1, Q] of blocks, and which [1, 1, Q, K] they are."""
    index = torch.argsort(present.int(), dim=-1, descending=True, stable=True).int()
    return present.sum(-1).int()[None, None], index[None, None]


@cache
def _compiled_flex() -> Callable[..., Tensor]:
    never_fall_back()
    return torch.compile(flex_attention, dynamic=True)


def never_fall_back() -> None:
    """Make torch.compile fail where it would give up: FlexAttention would then hold all scores [H, S, S]."""
    torch._dynamo.config.recompile_limit = RECOMPILES
    torch._dynamo.config.fail_on_recompile_limit_hit = True


@dataclass(frozen=True)
class _Flex:
    mask: BlockMask

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        attend: Any = flex_attention  # within a compiled layer it is compiled with it
        if query.is_cuda and not torch.compiler.is_compiling():
            attend = _compiled_flex()
        found: Tensor = attend(query, key, value, block_mask=self.mask, scale=scale, enable_gqa=True)
        return found
