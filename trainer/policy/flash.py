"""Attention in a tree by FlashAttention for sequences of unequal length: on CUDA, in bfloat16."""

import inspect
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial, wraps
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import varlen
from torch.nn.attention.varlen import varlen_attn

from trainer.policy.token_tree import Attend, Chain, TokenTree, moved

HEAD_SIZE = 256  # at most

log = logging.getLogger(__name__)


def flash_serves(config: Any, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether FlashAttention takes what a model's layers hand to it."""
    if device.type != "cuda" or dtype != torch.bfloat16 or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    two_sizes = getattr(config, "v_head_dim", None) not in (None, size)
    return size % 8 == 0 and size <= HEAD_SIZE and not two_sizes


def by_flash(tree: TokenTree) -> Attend:
    """FlashAttention over chains, with the paths that lead to them."""
    make_repeatable()
    return _Flash.of(tree)


@dataclass(frozen=True)
class _Flash:
    """Chains as sequences of unequal length: a chain's queries see its path whole, and itself causally.

    Nodes are in the chains' order as they are; keys and values, K in all, are copied for each chain.
    """

    copied: Tensor  # [K] node of each key
    own: Tensor  # [S] the key that is a node's own, in its chain
    copies: Tensor  # [A, C] the other keys of each node that is in a path; K where there are fewer
    ancestor: Tensor  # [S] a node's place among these A; A if it is in no path
    query_starts: Tensor  # [n + 1] int32
    key_starts: Tensor  # [n + 1] int32
    longest_query: int  # rounded up, so that compiled layers meet few different numbers
    longest_key: int

    @classmethod
    def of(cls, tree: TokenTree) -> "_Flash":
        chains, last = list(tree.chains), tree.chains[-1]
        if (rest := tree.size - last.start - last.length) > 0:  # padding attends to itself
            chains.append(Chain(last.start + last.length, rest, last.path[:0]))
        lengths = [chain.length for chain in chains]
        whole = [len(chain.path) + chain.length for chain in chains]
        starts, key_starts = ([0, *accumulate(each)] for each in (lengths, whole))
        own = [np.arange(end - chain.length, end) for chain, end in zip(chains, key_starts[1:], strict=True)]
        nodes = np.concatenate([chain.path for chain in chains])
        places = np.concatenate(
            [start + np.arange(len(c.path)) for c, start in zip(chains, key_starts, strict=False)]
        )
        copies, ancestor = _gathered(nodes, places, tree.size, key_starts[-1])
        copied = np.concatenate([np.append(c.path, np.arange(c.start, c.start + c.length)) for c in chains])
        arrays = (copied, np.concatenate(own), copies, ancestor, np.array(starts), np.array(key_starts))
        indices = moved(tree.tokens.device, [torch.from_numpy(one) for one in arrays])
        return cls(
            copied=indices[0],
            own=indices[1],
            copies=indices[2],
            ancestor=indices[3],
            query_starts=indices[4].int(),
            key_starts=indices[5].int(),
            longest_query=_power_of_two(max(lengths)),
            longest_key=_power_of_two(max(whole)),
        )

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> Tensor:
        # Under autocast, rotary embeddings leave queries and keys in float32.
        query, key = query.to(value.dtype), key.to(value.dtype)
        query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
        key, value = (_Copied.apply(each, *self._indices) for each in (key, value))  # type: ignore[no-untyped-call]
        found = attend_to_ends(
            query.contiguous(),
            key,
            value,
            self.query_starts,
            self.key_starts,
            self.longest_query,
            self.longest_key,
            scale,
        )
        return found.transpose(0, 1)[None]

    @property
    def _indices(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.copied, self.own, self.copies, self.ancestor


class _Copied(torch.autograd.Function):
    """[S, H, D] to [K, H, D]. Gradients of a node's copies are gathered and added up in float32, in order.

    The backward pass of an index would scatter them: slow where it has to give the same sum each time.
    """

    @staticmethod
    def forward(
        ctx: Any, nodes: Tensor, copied: Tensor, own: Tensor, copies: Tensor, ancestor: Tensor
    ) -> Tensor:
        ctx.save_for_backward(own, copies, ancestor)
        return nodes.index_select(0, copied)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        (up,), (own, copies, ancestor) = upstream, ctx.saved_tensors
        work = torch.promote_types(up.dtype, torch.float32)
        zero = up.new_zeros(1, *up.shape[1:])
        extra = torch.cat([up, zero])[copies].to(work).sum(1)  # [A, H, D]
        extra = torch.cat([extra, zero.to(work)])[ancestor]
        return (up.index_select(0, own) + extra).to(up.dtype), None, None, None, None


def _gathered(
    nodes: np.ndarray, places: np.ndarray, size: int, nothing: int
) -> tuple[np.ndarray, np.ndarray]:
    """`places` by node: [A, C] for the A nodes that have some, padded with `nothing`; and [size], each
    node's number among the A, or A."""
    order = np.argsort(nodes, kind="stable")
    known, first, count = np.unique(nodes[order], return_index=True, return_counts=True)
    table = np.full((len(known), count.max(initial=1)), nothing)
    row = np.repeat(np.arange(len(known)), count)
    table[row, np.arange(len(nodes)) - np.repeat(first, count)] = places[order]
    ancestor = np.full(size, len(known))
    ancestor[known] = np.arange(len(known))
    return table, ancestor


def _power_of_two(at_least: int) -> int:
    return 1 << (at_least - 1).bit_length()


def repeatable(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel, giving the same bits each time wherever deterministic algorithms are asked for at all.

    FlashAttention's backward pass does so only where others would be an error. A run asks for a warning alone
    (trainer/run.py: seed_all): gradients of queries would then be added up in the order in which blocks end.
    """

    @wraps(kernel)
    def strict(*given: Any, **named: Any) -> Any:
        mode = torch.get_deterministic_debug_mode()
        torch.set_deterministic_debug_mode(2 if mode else 0)
        try:
            return kernel(*given, **named)
        finally:
            torch.set_deterministic_debug_mode(mode)

    return strict


@cache
def make_repeatable() -> None:
    """Do so for PyTorch's own backward pass on CUDA alone: models may need what has no deterministic form."""
    try:
        backward = varlen._varlen_attn_backward
        backward.register_kernel("cuda")(repeatable(backward._init_fn))
    except AttributeError:  # they are PyTorch's private names
        log.warning(
            "gradients may differ between equal runs: this PyTorch hides FlashAttention's backward pass"
        )


_SINCE_2_12 = "enable_gqa" in inspect.signature(varlen_attn).parameters  # before, it was not asked for


def attend_to_ends(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_starts: Tensor,
    key_starts: Tensor,
    longest_query: int,
    longest_key: int,
    scale: float | None,
) -> Tensor:
    """Causal from the ends of the sequences: the last query sees all keys."""
    attend: Any = partial(varlen_attn, enable_gqa=True) if _SINCE_2_12 else varlen_attn
    found: Tensor = attend(
        query,
        key,
        value,
        query_starts,
        key_starts,
        longest_query,
        longest_key,
        scale=scale,
        window_size=(-1, 0),
    )
    return found
