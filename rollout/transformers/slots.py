"""Static memory for decoding without the host: the key/value cache, a step's inputs and outputs, and CUDA
graphs of the step.

A slot of the cache holds one token of each row. Prompts are aligned right, so that all rows write to the same
slot; a mask hides the gap before a shorter prompt. A step passes the newest tokens through the model, chooses
the next ones, records them and moves on by a slot.
"""

import logging
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from rollout.transformers.attention import additive
from rollout.transformers.prefill import Model, Prefilled
from rollout.transformers.token_choice import choose

log = logging.getLogger(__name__)

STRIDE = 16  # steps between two reads by the host
FEWEST_ROWS = 8  # numbers of rows are multiples of it
_FEWEST_SLOTS = 64
_MOST_GRAPHS = 32


class _Shape(NamedTuple):
    """What is fixed in a CUDA graph of a step."""

    rows: int
    length: int  # slots that are attended to
    slots: int  # that a row has
    temperature: float


@dataclass
class _Window:
    """The part of the cache that a step uses."""

    rows: int
    length: int
    slot: Tensor  # [1] int64, where the step writes


class _SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values [rows, H, slots, D] of one layer, written in place."""

    keys: Tensor
    values: Tensor

    def __init__(self, window: _Window, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._window = window
        self._memory = keys, values  # flat
        self.is_initialized = True

    def lay_out(self, rows: int, slots: int, heads: int, *sizes: int) -> None:
        self.keys, self.values = (
            memory[: rows * heads * slots * size].view(rows, heads, slots, size)
            for memory, size in zip(self._memory, sizes, strict=True)
        )

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        rows, length = self._window.rows, self._window.length
        keys, values = self.keys[:rows, :, :length], self.values[:rows, :, :length]
        _put(keys, 2, self._window.slot, key_states)
        _put(values, 2, self._window.slot, value_states)
        return keys, values

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        raise NotImplementedError

    def get_seq_length(self) -> Any:
        return self._window.slot[0]  # a tensor, as a graph would keep a number for ever

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self._window.length, 0

    def get_max_length(self) -> int:
        return self._window.length


class Slots:
    """Memory and graphs. They are kept between requests, and replaced when one needs more.

    Graphs hold the addresses of the model's weights: new weights must be copied in place.
    """

    def __init__(self, model: Model, *, graphs: bool) -> None:
        self.device = next(model.parameters()).device
        self._model = model
        self._capturing = graphs
        self.clear()

    def clear(self) -> None:
        """Free all memory."""
        self._graphs: dict[_Shape, torch.cuda.CUDAGraph] = {}
        self._layers: list[_SlotLayer] = []
        self._most_rows = self._most_tokens = 0

    def fill(self, start: Prefilled, prompts: Tensor, new_tokens: int) -> None:
        """Begin with a row for each of these prompts [B], with space for the new tokens."""
        rows, width = len(prompts), start.paths.shape[1]
        self._reserve(start, rows, rounded(width + new_tokens, 32))
        for number, layer in enumerate(self._layers):
            keys, values = start.rows(number, prompts)
            layer.keys[:, :, :width] = keys
            layer.values[:, :, :width] = values
        self._gaps[:rows] = start.gaps[prompts]
        self._slot.fill_(width)
        self._at = width  # the slot, as the host knows it

    def deal(self, draws: Tensor) -> None:
        """Set the draws [B, k] of the next k choices."""
        rows, count = draws.shape
        self._draws[:rows, :count] = draws
        self._column.zero_()

    def choose(self, logits: Tensor, temperature: float) -> None:
        """Choose and record the next token of the first rows, given their logits [rows, V]."""
        rows = len(logits)
        chosen = choose(logits, temperature, self._draws[:rows].index_select(1, self._column)[:, 0])
        self._newest[:rows] = chosen.tokens
        _put(self.tokens[:rows], 1, self._column, chosen.tokens[:, None])
        _put(self.log_probs[:rows], 1, self._column, chosen.log_probs[:, None])
        self._column.add_(1)

    def step(self, rows: int, temperature: float) -> None:
        """Pass the newest tokens of the first rows through the model, and choose the next ones."""
        length = min(bucket(self._at + 1, _FEWEST_SLOTS), self._slots)
        shape = _Shape(rows, length, self._slots, temperature)
        graph = self._graphs.get(shape)
        if graph is not None:
            graph.replay()
        else:
            self._step(shape)
            if self._capturing:
                self._capture(shape)  # after an eager step, because kernels can't be loaded during a capture
        self._at += 1

    def keep(self, kept: Tensor) -> None:
        """Move these rows to the front."""
        rows = len(kept)
        for layer in self._layers:
            layer.keys[:rows, :, : self._at] = layer.keys[kept, :, : self._at]
            layer.values[:rows, :, : self._at] = layer.values[kept, :, : self._at]
        self._gaps[:rows] = self._gaps[kept]
        self._newest[:rows] = self._newest[kept]

    def _step(self, shape: _Shape) -> None:
        rows, length = shape.rows, shape.length
        self._window.rows, self._window.length = rows, length
        gaps, place = self._gaps[:rows, None], torch.arange(length, device=self.device)
        mask = additive((place >= gaps) & (place <= self._slot), self._model.dtype)
        output = self._model(
            input_ids=self._newest[:rows, None],
            attention_mask=mask[:, None, None],
            position_ids=self._slot - gaps,
            past_key_values=self._cache,
            use_cache=True,
        )
        self._slot.add_(1)
        self.choose(output.logits[:, -1], shape.temperature)

    def _capture(self, shape: _Shape) -> None:
        if len(self._graphs) == _MOST_GRAPHS:
            self._graphs.clear()
        pool = next(iter(self._graphs.values())).pool() if self._graphs else None
        try:
            graph = torch.cuda.CUDAGraph()
            with (
                torch.cuda.device(self.device),
                torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"),
            ):
                self._step(shape)
        except RuntimeError as error:
            self._capturing = False
            log.warning("decoding without CUDA graphs, which is slower, because a capture failed: %s", error)
        else:
            self._graphs[shape] = graph

    def _reserve(self, start: Prefilled, rows: int, slots: int) -> None:
        sizes = [(keys.shape[0], keys.shape[2], values.shape[2]) for keys, values in start.layers]
        if rows > self._most_rows or rows * slots > self._most_tokens:
            most_rows, most_tokens = max(rows, self._most_rows), max(rows * slots, self._most_tokens)
            self.clear()
            self._most_rows, self._most_tokens = most_rows, most_tokens
            self._allocate(sizes, start.layers[0][0].dtype)
        self._slots = slots
        for layer, size in zip(self._layers, sizes, strict=True):
            layer.lay_out(rows, slots, *size)

    def _allocate(self, sizes: list[tuple[int, int, int]], dtype: torch.dtype) -> None:
        """All zeros: slots not yet written are masked, but a NaN in them would still spread."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self.device)

        rows, tokens = self._most_rows, self._most_tokens
        self._slot, self._column = zeros(1), zeros(1)
        self._window = _Window(0, 0, self._slot)
        self._gaps, self._newest = zeros(rows), zeros(rows)
        self._draws = zeros(rows, STRIDE, dtype=torch.float64)
        self.tokens = zeros(rows, STRIDE)  # those chosen since `deal`
        self.log_probs = zeros(rows, STRIDE, dtype=torch.float32)
        self._layers = [
            _SlotLayer(self._window, *(zeros(tokens * heads * size, dtype=dtype) for size in (key, value)))
            for heads, key, value in sizes
        ]
        self._cache = Cache(layers=[*self._layers])


def bucket(count: int, fewest: int) -> int:
    """The smallest of fewest * (1, 1.5, 2, 3, 4, 6, 8, 12, ...) that is at least count."""
    power = fewest
    while 2 * power < count:
        power *= 2
    return next(size for size in (power, 3 * power // 2, 2 * power) if size >= count)


def rounded(count: int, multiple: int) -> int:
    """Count, rounded up to a multiple."""
    return -(-count // multiple) * multiple


def _put(target: Tensor, dim: int, index: Tensor, source: Tensor) -> None:
    """index_copy_ with one index. In deterministic mode torch would sort it, and copy all of `target`."""
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode(0)
    try:
        target.index_copy_(dim, index, source)
    finally:
        torch.set_deterministic_debug_mode(mode)
