"""Chains of elementwise operations as one kernel on CUDA, where each alone would cost a launch and a pass."""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor


def fused(function: Callable[..., Any], where: Tensor) -> Callable[..., Any]:
    """The function, compiled if `where` is on CUDA. It must be pure, and one object for the whole run."""
    return _compiled(function) if where.is_cuda else function


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    # Sizes that stay the same are constants in the kernel: a division by the vocabulary's is dear otherwise.
    return torch.compile(function)
