"""Attention in which a token of a tree sees its ancestors and itself, on CPUs and on CUDA.

transformers' models ask for attention by name. Under ours they hand through what they were called with, so a
tree's attention comes to every layer as the argument `token_tree`. Without it the name stands for SDPA.

Three ways compute it, chosen by device and size (benchmarks/tree_attention.py has the CPU's figures):

dense    SDPA with a mask [S, S], for small trees on a CPU
chains   SDPA over runs of nodes without a branch, each with the path that leads to it: what no node sees is
         never computed
flex     FlexAttention with a block mask, compiled, on CUDA
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.policy.token_tree import Chain, TokenTree

log = logging.getLogger(__name__)

NAME = "powermean_tree"
DENSE_UP_TO = 256  # nodes: from here on a mask costs more than gathering
BLOCK = 128  # FlexAttention's block, and what trees on CUDA are padded to a multiple of
RECOMPILES = 32  # with and without gradients, by type, and whatever else torch tells apart
_SIMILAR = 1.5  # chains up to so many times as long as the shortest share a call

Attend = Callable[[Tensor, Tensor, Tensor, float | None], Tensor]
"""query [1, H, S, D], key and value [1, H', S, D], scale (None: D ** -0.5) -> [1, H, S, D]"""


class TreeUnsupportedError(Exception):
    """The model's attention has something that ours has not."""


def tree_attention(tree: TokenTree) -> Attend:
    """How the tree's tokens attend, on the device where the tree is."""
    if tree.tokens.is_cuda:
        return by_flex(tree)
    return dense(tree) if tree.size <= DENSE_UP_TO else by_chains(tree)


def dense(tree: TokenTree) -> Attend:
    """SDPA with the tree's mask."""
    mask = tree.mask()
    return lambda query, key, value, scale: scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )


def by_chains(tree: TokenTree) -> Attend:
    """SDPA over chains of similar length, with the paths that lead to them."""
    return _Chains.of(tree)


def by_flex(tree: TokenTree) -> Attend:
    """FlexAttention; its size is a multiple of BLOCK."""
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


@dataclass(frozen=True)
class _Batch:
    """Chains that go through one call of SDPA."""

    queries: Tensor  # [n, Lq] nodes, node 0 on padding
    keys: Tensor  # [n, Lk] nodes, path and chain, each padded
    mask: Tensor  # [n, 1, Lq, Lk] float32 0 or -inf; a padded query sees something, and is dropped
    real: Tensor  # [m] places of the n * Lq queries that are no padding

    @classmethod
    def of(cls, chains: Sequence[Chain]) -> "_Batch":
        width, path = max(c.length for c in chains), max(len(c.path) for c in chains)
        queries = torch.zeros(len(chains), width, dtype=torch.int64)
        keys = torch.zeros(len(chains), path + width, dtype=torch.int64)
        sees = torch.zeros(len(chains), width, path + width, dtype=torch.bool)
        real = torch.zeros(len(chains), width, dtype=torch.bool)
        sees[:, :, path:] = torch.ones(width, width, dtype=torch.bool).tril()
        for row, chain in enumerate(chains):
            nodes = torch.arange(chain.start, chain.start + chain.length)
            queries[row, : chain.length] = nodes
            real[row, : chain.length] = True
            keys[row, : len(chain.path)] = torch.from_numpy(chain.path)
            keys[row, path : path + chain.length] = nodes
            sees[row, :, : len(chain.path)] = True
        mask = torch.zeros(sees.shape).masked_fill_(~sees, -torch.inf)
        return cls(queries, keys, mask[:, None], real.flatten().nonzero()[:, 0])

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        """From [S, H, D], [S, H', D] to [m, H, D]."""
        query, key, value = (
            each.index_select(0, nodes.flatten()).view(*nodes.shape, *each.shape[1:]).transpose(1, 2)
            for each, nodes in ((query, self.queries), (key, self.keys), (value, self.keys))
        )
        found = scaled_dot_product_attention(
            query, key, value, attn_mask=self.mask.to(query.dtype), scale=scale, enable_gqa=True
        )
        return found.transpose(1, 2).flatten(0, 1).index_select(0, self.real)


@dataclass(frozen=True)
class _Chains:
    batches: tuple[_Batch, ...]
    place: Tensor  # [S] where a node's output lies in the batches' outputs

    @classmethod
    def of(cls, tree: TokenTree) -> "_Chains":
        batches = tuple(_Batch.of(chains) for chains in _similar(tree.chains))
        nodes = torch.cat([batch.queries.flatten()[batch.real] for batch in batches])
        return cls(batches, torch.argsort(nodes))

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
        found = torch.cat([batch(query, key, value, scale) for batch in self.batches])
        return found.index_select(0, self.place).transpose(0, 1)[None]


def _similar(chains: Sequence[Chain]) -> list[list[Chain]]:
    """The chains, shortest first, in lots of similar length."""
    lots: list[list[Chain]] = []
    for chain in sorted(chains, key=lambda one: (one.length, len(one.path))):
        if lots and chain.length <= _SIMILAR * lots[-1][0].length:
            lots[-1].append(chain)
        else:
            lots.append([chain])
    return lots


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    token_tree: Attend | None = None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: [1, H, S, D] to [1, S, H, D]."""
    if token_tree is None:
        found, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **others
        )
        return found, None
    for name in ("sliding_window", "softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise TreeUnsupportedError(f"its attention has {name}")
    if others.get("dropout"):
        raise TreeUnsupportedError("its attention has dropout")
    return token_tree(query, key, value, scaling).transpose(1, 2).contiguous(), None


def attend_by_trees(model: PreTrainedModel) -> None:
    """Let the model's layers attend by `token_tree` where it is given, by SDPA where it isn't."""
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
