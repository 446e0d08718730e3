"""Batched sampling with a key/value cache.

What prompts share is computed once: their common prefix once a batch, a prompt once for all its completions.
Prompts of unequal length are padded on the left, between the common prefix and the rest; masks and positions
come from lengths, never from token ids. Rows that are finished leave the batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Event
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from rollout.engine import CancelledError
from rollout.transformers.stopping import Stopping
from rollout.transformers.token_choice import choose

Model = Any  # transformers' models are untyped


@dataclass
class Sampled:
    """One sampled completion."""

    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    stopped: bool = False


@dataclass
class _Batch:
    """The rows that are still being sampled."""

    rows: Tensor  # [B] their places in the result
    cache: Any
    mask: Tensor | None  # [B, S] 0 on padding; None without any padding
    lengths: Tensor  # [B] tokens so far, without padding

    def keep(self, kept: Tensor) -> None:
        self.rows, self.lengths = self.rows[kept], self.lengths[kept]
        self.cache.reorder_cache(kept)
        if self.mask is not None:
            self.mask = self.mask[kept]


@torch.inference_mode()
def sample_batch(
    model: Model,
    prompts: Sequence[tuple[int, ...]],
    draws: Tensor,
    temperature: float,
    stopping: Stopping,
    cancelled: Event,
    *,
    plain: bool,
) -> list[Sampled]:
    """A completion of each prompt; equal prompts are computed once.

    draws [B, max_new_tokens] float64 in [0, 1): all the randomness there is. `plain` is `is_plain(model)`;
    without it prompts must be of one length. Raises CancelledError, and EngineError as `choose` does.
    """
    distinct = list(dict.fromkeys(prompts))
    places = {prompt: place for place, prompt in enumerate(distinct)}
    owners = torch.tensor([places[prompt] for prompt in prompts], device=draws.device)
    logits, batch = _prefill(model, distinct, draws.device, _common_prefix(distinct) if plain else 0)
    logits = logits[owners]
    batch.keep(owners)
    batch.rows = torch.arange(len(prompts), device=draws.device)
    results = [Sampled() for _ in prompts]
    last = draws.shape[1] - 1
    for place in range(last + 1):
        if cancelled.is_set():
            raise CancelledError
        chosen = choose(logits, temperature, draws[batch.rows, place])
        going = _record(results, batch.rows, chosen.tokens, chosen.log_probs, stopping)
        if place == last or not going:
            break
        tokens = chosen.tokens
        if len(going) < len(tokens):
            kept = torch.tensor(going, device=draws.device)
            tokens = tokens[kept]
            batch.keep(kept)
        logits = _step(model, batch, tokens)
    return results


@torch.inference_mode()
def is_plain(model: Model) -> bool:
    """Whether the model's cache is plain attention's: extended by any number of tokens, masked anywhere."""
    device = next(model.parameters()).device
    cache = model(input_ids=torch.tensor([[1]], device=device), use_cache=True).past_key_values
    return type(cache) is DynamicCache and all(type(layer) is DynamicLayer for layer in cache.layers)


def _record(
    results: list[Sampled], rows: Tensor, tokens: Tensor, log_probs: Tensor, stopping: Stopping
) -> list[int]:
    """Append the tokens; places in the batch of the rows that go on."""
    going = []
    for place, (row, token, log_prob) in enumerate(
        zip(rows.tolist(), tokens.tolist(), log_probs.tolist(), strict=True)
    ):
        result = results[row]
        result.token_ids.append(token)
        result.log_probs.append(log_prob)
        result.stopped = stopping.stops(result.token_ids)
        if not result.stopped:
            going.append(place)
    return going


def _prefill(
    model: Model, prompts: Sequence[tuple[int, ...]], device: torch.device, shared: int
) -> tuple[Tensor, _Batch]:
    """Logits [P, V] after each prompt, and their cache; all prompts begin with the same `shared` tokens."""
    cache = None
    if shared:
        prefix = torch.tensor([prompts[0][:shared]], device=device)
        cache = model(input_ids=prefix, use_cache=True, logits_to_keep=1).past_key_values
        cache.reorder_cache(torch.zeros(len(prompts), dtype=torch.int64, device=device))
    width = max(map(len, prompts)) - shared
    gaps = [width - (len(prompt) - shared) for prompt in prompts]
    ids = torch.tensor([[0] * gap + list(prompt[shared:]) for gap, prompt in zip(gaps, prompts, strict=True)])
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)
    mask = None
    if any(gaps):
        real = torch.arange(width)[None, :] >= torch.tensor(gaps)[:, None]
        mask = torch.cat([torch.ones(len(prompts), shared, dtype=torch.bool), real], dim=1).long().to(device)
    positions = (torch.arange(width, device=device)[None, :] - width + lengths[:, None]).clamp(min=0)
    output = model(
        input_ids=ids.to(device),
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    rows = torch.arange(len(prompts), device=device)
    return output.logits[:, -1], _Batch(rows, output.past_key_values, mask, lengths)


def _step(model: Model, batch: _Batch, tokens: Tensor) -> Tensor:
    """Logits [B, V] after one more token in each row."""
    if batch.mask is not None:
        batch.mask = torch.cat([batch.mask, batch.mask.new_ones(len(tokens), 1)], dim=1)
    output = model(
        input_ids=tokens[:, None],
        attention_mask=batch.mask,
        position_ids=batch.lengths[:, None],
        past_key_values=batch.cache,
        use_cache=True,
    )
    batch.lengths = batch.lengths + 1
    logits: Tensor = output.logits[:, -1]
    return logits


def _common_prefix(prompts: Sequence[tuple[int, ...]]) -> int:
    """Length of what several prompts have in common, short of each one's last token; 0 for a single one."""
    if len(prompts) == 1:
        return 0
    low, high = min(prompts), max(prompts)  # in lexical order the extremes differ first
    longest = min(map(len, prompts)) - 1
    return next((place for place in range(longest) if low[place] != high[place]), longest)
