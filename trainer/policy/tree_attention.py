"""Attention in which a token of a tree sees its ancestors and itself, on CPUs and on CUDA.

transformers' models ask for attention by name. Under ours they hand through what they were called with, so a
tree's attention comes to every layer as the argument `token_tree`. Without it the name stands for SDPA.

Four ways compute it, chosen by device, type and size (benchmarks/tree_attention.py has the CPU's figures):

dense    SDPA with a mask [S, S], for small trees on a CPU
chains   SDPA over runs of nodes without a branch, each with the path that leads to it: what no node sees is
         never computed
flash    the same chains through FlashAttention for sequences of unequal length, on CUDA in bfloat16
flex     FlexAttention with a block mask, compiled, for all else on CUDA
"""

from typing import Any

from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from trainer.defaults import DENSE_UP_TO
from trainer.policy.chains import by_chains
from trainer.policy.flash import by_flash
from trainer.policy.flex import by_flex
from trainer.policy.token_tree import Attend, TokenTree

NAME = "powermean_tree"


class TreeUnsupportedError(Exception):
    """The model's attention has something that ours has not."""


def tree_attention(tree: TokenTree, *, flash: bool) -> Attend:
    """How the tree's tokens attend, on the device where the tree is; `flash` as `flash_serves` says."""
    if tree.tokens.is_cuda:
        return by_flash(tree) if flash else by_flex(tree)
    return dense(tree) if tree.size <= DENSE_UP_TO else by_chains(tree)


def dense(tree: TokenTree) -> Attend:
    """SDPA with the tree's mask."""
    mask = tree.mask()
    return lambda query, key, value, scale: scaled_dot_product_attention(
        query, key, value, attn_mask=mask, scale=scale, enable_gqa=True
    )


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
