"""Attention in a tree on a CPU: SDPA over chains of similar length, each with the path that leads to it.

What no node sees is never computed.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from trainer.policy.token_tree import Attend, Chain, TokenTree

_SIMILAR = 1.5  # chains up to so many times as long as the shortest share a call


def by_chains(tree: TokenTree) -> Attend:
    """SDPA over chains of similar length, with the paths that lead to them."""
    return _Chains.of(tree)


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
