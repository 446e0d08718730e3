"""A pass through a model that FSDP2 may have sharded.

What scores a policy calls the decoder and then multiplies with the output layer's weight; the model's own
`forward`, around which FSDP2 gathers what lies outside of the layers, never runs. This runs in its place.
"""

from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

from torch import nn
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method

Result = TypeVar("Result")

_NAME = "powermean_pass"


def allow_passes(model: nn.Module) -> None:
    """Prepare the root of a sharded model for `one_pass`."""
    setattr(model, _NAME, MethodType(_compute, model))
    register_fsdp_forward_method(model, _NAME)


def one_pass(model: nn.Module, compute: Callable[[], Result]) -> Result:
    """What `compute` gives, as tensors or a tuple of them, with all weights outside of the layers gathered.

    The backward pass through these tensors gathers them again, and reduces their gradients. Of a model that
    is not sharded, all weights are there anyway.
    """
    if not isinstance(model, FSDPModule):
        return compute()
    try:
        result: Result = getattr(model, _NAME)(compute)
    except BaseException:
        model.reset_iter_state()
        raise
    return result


def _compute(_model: nn.Module, compute: Callable[[], Any]) -> Any:
    return compute()
