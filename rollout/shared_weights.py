"""Weights in memory that trainer and engine share: a safetensors file that both map.

Eight bytes tell the length of the header; the header, JSON, tells type, shape and place of each tensor in
the bytes that follow.
"""

import json
import mmap
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import Field, TypeAdapter
from torch import Tensor

from powermean.contracts.base import Contract

ALIGNMENT = 64  # bytes, as of the memory that PyTorch allocates
_NAMES = {
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_TYPES = {name: dtype for dtype, name in _NAMES.items()}


class _Entry(Contract):
    """What the header says of a tensor; `data_offsets` are bytes behind the header."""

    dtype: Literal["F32", "BF16", "I64", "I32", "U8", "BOOL"]
    shape: tuple[Annotated[int, Field(ge=0)], ...]
    data_offsets: tuple[int, int]


_LAYOUT = TypeAdapter(dict[str, _Entry])


def file_head(tensors: Iterable[tuple[str, torch.dtype, torch.Size]]) -> bytes:
    """What a safetensors file begins with; the tensors' numbers follow, in this order."""
    layout: dict[str, object] = {}
    end = 0
    for name, dtype, shape in tensors:
        start, end = end, end + shape.numel() * dtype.itemsize
        layout[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    header = json.dumps(layout).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    return len(header).to_bytes(8, "little") + header


def mapped(path: Path, *, writable: bool = False) -> dict[str, Tensor]:
    """A safetensors file's tensors as views of the file itself: all who map it see what is written to it.

    The kernel ends a process that writes to a view which is not `writable`. Raises OSError, and ValueError
    for a file of another kind.
    """
    with path.open("r+b" if writable else "rb") as file:
        allowed = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        memory = mmap.mmap(file.fileno(), 0, prot=allowed)
    start = 8 + int.from_bytes(memory[:8], "little")
    layout = _LAYOUT.validate_json(memory[8:start])
    with warnings.catch_warnings():
        # Tensors can be written to, warns PyTorch, and this memory can't: so it is meant.
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        return {name: _view(memory, start, entry) for name, entry in layout.items()}


def float_types(state: Mapping[str, Tensor]) -> set[torch.dtype]:
    """Types of the weights that are no counters or masks."""
    return {weight.dtype for weight in state.values() if weight.is_floating_point()}


@torch.no_grad()
def replace_weights(state: Mapping[str, Tensor], replacements: Iterable[tuple[str, Tensor]]) -> None:
    """Give the model's weights other memory; those that are tied stay so.

    state: the model's own tensors, state_dict(keep_vars=True). replacements: one for each weight, by any of
    its names. They are taken one by one, and the old memory of each is let go before the next is asked for.
    """
    tied: dict[tuple[object, ...], list[Tensor]] = defaultdict(list)
    for weight in state.values():
        tied[_place(weight)].append(weight)
    weights = {name: tied[_place(weight)] for name, weight in state.items()}
    for name, replacement in replacements:
        for weight in weights[name]:
            weight.data = replacement


def _view(memory: mmap.mmap, start: int, entry: _Entry) -> Tensor:
    dtype, shape = _TYPES[entry.dtype], torch.Size(entry.shape)
    if not shape.numel():
        return torch.empty(shape, dtype=dtype)
    place = start + entry.data_offsets[0]
    return torch.frombuffer(memory, dtype=dtype, count=shape.numel(), offset=place).view(shape)


def _place(weight: Tensor) -> tuple[object, ...]:
    return weight.data_ptr(), weight.dtype, weight.shape
