"""Attention of one new token a row, where several query heads share the keys and values of one head.

transformers repeats keys and values for each query head as soon as there is a mask. For a single token the
heads that share can stand in the place of queries instead: the same sums, and nothing is repeated.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "powermean_grouped"
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend_in_groups(model: Any) -> None:
    """Let the model's layers attend in this way."""
    AttentionInterface.register(NAME, _forward)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)


def attention_kernels(device: torch.device) -> AbstractContextManager[Any]:
    """All of SDPA's kernels on CUDA but cuDNN's."""
    return nullcontext() if device.type == "cpu" else sdpa_kernel(_KERNELS)


def mask_of(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What SDPA adds to its scores: 0 where bool `seen` [..., Q, K] is true, -inf elsewhere."""
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, -torch.inf)


def _forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **others: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query [B, H, Q, D], key and value [B, H', K, D] to [B, Q, H, D]."""
    batch, heads, length, size = query.shape
    by_head = attention_mask is not None and attention_mask.shape[1] > 1
    if length > 1 or heads == key.shape[1] or by_head or others.get("position_bias") is not None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **others
        )
        return output, None
    grouped = query.view(batch, key.shape[1], -1, size)
    found = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return found.reshape(batch, 1, heads, -1), None
