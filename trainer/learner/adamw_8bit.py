"""AdamW with its moments in 8 bits (arXiv 2110.02861), by torchao: two bytes a weight instead of eight.

Each block of 256 numbers has its own scale; weights of less than 4096 numbers keep float32. Moments are saved
in float32, so that a run may go on with the other kind of state or with other shards. Their scales are saved
beside them: no code stands for -1, so a block whose largest number is negative would get a smaller one. Those
of shards are not: their moments come back within 1 % of a block's largest number.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torchao.optim import AdamW8bit
from torchao.optim.quant_utils import quantize_8bit_with_qmap
from torchao.optim.subclass_8bit import OptimState8bit

_SCALE = "_scale"
_MOMENTS = {"exp_avg": True, "exp_avg_sq": False}  # whether it has a sign


class EightBitAdamW(AdamW8bit):  # type: ignore[misc]
    """Takes a rate that is a number, and state in float32."""

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:  # a number would be compiled into the step
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32)
        with self._compiled():
            return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        found: dict[str, Any] = super().state_dict()
        found["state"] = {
            number: {name: _plain(value) for name, value in state.items()} | _scales(state)
            for number, state in found["state"].items()
        }
        return found

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        for weight, state in self.state.items():
            for name, signed in _MOMENTS.items():
                saved, scale = state[name], state.pop(name + _SCALE, None)
                state[name] = self._new_buffer(weight, signed).copy_(saved)
                if scale is not None and isinstance(
                    state[name], OptimState8bit
                ):  # a shard's blocks are others
                    _rescale(state[name], saved, scale)

    def _compiled(self) -> AbstractContextManager[object]:
        """On a CPU the compiler takes longer, for each shape, than a small run: the step runs without it."""
        cuda = any(weight.is_cuda for group in self.param_groups for weight in group["params"])
        return nullcontext() if cuda else torch.compiler.set_stance("force_eager")


def _scales(state: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name + _SCALE: one.scale for name, one in state.items() if isinstance(one, OptimState8bit)}


def _rescale(moment: OptimState8bit, saved: Tensor, scale: Tensor) -> None:
    """Codes of the saved numbers by the scales that they had."""
    blocks = (saved.view(-1, moment.block_size) / scale[:, None]).view_as(saved)
    moment.codes.copy_(quantize_8bit_with_qmap(blocks, moment.qmap))
    moment.scale.copy_(scale)


def _plain(value: Any) -> Any:
    """In float32."""
    if isinstance(value, DTensor) and isinstance(value.to_local(), OptimState8bit):
        local: Tensor = value.to_local().dequantize()
        return DTensor.from_local(
            local, value.device_mesh, value.placements, shape=value.shape, stride=value.stride()
        )
    return value.dequantize() if isinstance(value, OptimState8bit) else value
