"""Decoding in static memory, for CUDA: the host launches many steps, then reads their tokens together."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rollout.transformers.prefill import Model, Prompt, prefill
from rollout.transformers.slots import FEWEST_ROWS, STRIDE, Slots, bucket, rounded
from rollout.transformers.token_choice import Chosen


class SlotDecoder:
    """B completions in the first B rows of the slots; see Decoder."""

    stride = STRIDE
    fullness = 0.5

    @torch.inference_mode()
    def __init__(
        self, model: Model, slots: Slots, prompts: Sequence[Prompt], temperature: float, new_tokens: int
    ) -> None:
        """`is_plain(model)` must hold. Only one decoder at a time may use the slots."""
        self._slots = slots
        self._temperature = temperature
        distinct = list(dict.fromkeys(prompts))
        number = {prompt: place for place, prompt in enumerate(distinct)}
        start = prefill(model, distinct, slots.device)
        self._rows = rounded(len(prompts), FEWEST_ROWS)
        owners = self._filled([number[prompt] for prompt in prompts])
        slots.fill(start, owners, new_tokens)
        self._logits: Tensor | None = start.logits[owners]  # until the first token is chosen

    def advance(self, draws: Tensor) -> Chosen:
        """See Decoder."""
        rows, steps = draws.shape
        self._slots.deal(draws)
        if self._logits is not None:
            self._slots.choose(self._logits, self._temperature)
            self._logits = None
            steps -= 1
        for _ in range(steps):
            self._slots.step(self._rows, self._temperature)
        count = draws.shape[1]
        return Chosen(self._slots.tokens[:rows, :count], self._slots.log_probs[:rows, :count])

    def keep(self, kept: Sequence[int]) -> None:
        """See Decoder."""
        self._rows = min(bucket(len(kept), FEWEST_ROWS), self._rows)
        self._slots.keep(self._filled(kept))

    def _filled(self, rows: Sequence[int]) -> Tensor:
        """Fill up to the number of rows by repeating the first; the results of repeats are ignored."""
        return torch.tensor([*rows, *[rows[0]] * (self._rows - len(rows))], device=self._slots.device)
