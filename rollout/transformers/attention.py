"""How a model attends while it decodes: without copying keys and values, and by which of SDPA's kernels.

With a mask, transformers' SDPA attention copies keys and values for each query head that shares them. A
single new token does not need that: the heads that share keys can be passed as queries of one head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "powermean_grouped"
# cuDNN's kernel is left out: it has given NaN for queries that see no key, and its results are not known to
# be the same in each run.
_KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def decoding_attention(model: Any, *, grouped: bool) -> Iterator[None]:
    """Use our kernels and, if `grouped`, our attention. The model gets its own back, as others may use it."""
    own = model.config._attn_implementation
    if grouped:
        AttentionInterface.register(_NAME, _forward)
        AttentionMaskInterface.register(_NAME, sdpa_mask)
        model.set_attn_implementation(_NAME)
    try:
        with sdpa_kernel(_KERNELS):
            yield
    finally:
        if grouped:
            model.set_attn_implementation(own)


def additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask that SDPA adds to its scores: 0 where bool `visible` [..., Q, K] is true, else -inf."""
    mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
    return mask.masked_fill_(~visible, -torch.inf)


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
    output = scaled_dot_product_attention(grouped, key, value, attn_mask=attention_mask, scale=scaling)
    return output.reshape(batch, 1, heads, -1), None
