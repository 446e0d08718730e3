"""LoRA's matrix products on a CPU: one product per adapter instead of one per token.

vLLM's own (vllm/lora/ops/torch_ops of 0.32.0) copy an adapter's weights for every token of the batch: a
prompt of a hundred tokens moves gigabytes. Nothing is added for tokens without an adapter, whose index is -1.
"""

import torch
from torch import Tensor
from vllm.lora.ops.torch_ops import lora_ops
from vllm.lora.punica_wrapper import punica_cpu


def install() -> None:
    """Replace vLLM's functions by these in this process. Its sgmv_* functions call them too."""
    for module in (lora_ops, punica_cpu):
        for product in (bgmv_shrink, bgmv_expand, bgmv_expand_slice):
            setattr(module, product.__name__, product)


def bgmv_shrink(
    inputs: Tensor, weights: Tensor, output: Tensor, adapters: Tensor, scaling: float = 1.0
) -> None:
    """output[t, :r] = scaling A[adapters[t]] inputs[t]; weights [slots, 1, r, in], inputs [T, in]."""
    found = _products(inputs, weights, adapters, output.dtype)
    output[:, : found.shape[1]] = scaling * found


def bgmv_expand(
    inputs: Tensor, weights: Tensor, output: Tensor, adapters: Tensor, add_inputs: bool = True
) -> None:
    """output[t] (+)= B[adapters[t]] inputs[t]; weights [slots, 1, out, r], widths up to padding."""
    width = min(weights.shape[-2], output.shape[1])
    bgmv_expand_slice(inputs, weights[..., :width, :], output, adapters, 0, width, add_inputs)


def bgmv_expand_slice(
    inputs: Tensor,
    weights: Tensor,
    output: Tensor,
    adapters: Tensor,
    slice_offset: int,
    slice_size: int,
    add_inputs: bool = True,
) -> None:
    """Like bgmv_expand, into columns [slice_offset, slice_offset + slice_size)."""
    found = _products(inputs, weights, adapters, output.dtype)
    part = output[:, slice_offset : slice_offset + slice_size]
    if add_inputs:
        part += found
    else:
        part.copy_(found)


def _products(inputs: Tensor, weights: Tensor, adapters: Tensor, dtype: torch.dtype) -> Tensor:
    """[T, out]: weights[adapters[t]] inputs[t]."""
    inputs, weights = inputs.to(dtype), weights.flatten(0, -3)
    present = sorted(set(adapters.tolist()))
    if len(present) == 1 and present[0] >= 0:
        return inputs @ weights[present[0]].to(dtype).T
    products = inputs.new_zeros(inputs.shape[0], weights.shape[-2])
    for adapter in present:
        if adapter >= 0:
            rows = (adapters == adapter).nonzero()[:, 0]
            products[rows] = inputs[rows] @ weights[adapter].to(dtype).T
    return products
