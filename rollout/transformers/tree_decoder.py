"""Decoding that passes only distinct histories through the model.

Completions with equal tokens so far share a row. When they draw different tokens the row splits, and only
then is its cache copied. All it needs from a model is a cache that can be reordered.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from rollout.transformers.attention import additive
from rollout.transformers.prefill import Model, Prefilled, Prompt, prefill
from rollout.transformers.token_choice import Chosen, choose


class TreeDecoder:
    """R distinct histories of B completions; see Decoder."""

    stride = 1
    fullness = 1.0

    @torch.inference_mode()
    def __init__(self, model: Model, prompts: Sequence[Prompt], temperature: float, *, plain: bool) -> None:
        """`plain` is `is_plain(model)`; if false, all prompts must have the same length."""
        self._model = model
        self._temperature = temperature
        device = next(model.parameters()).device
        distinct = list(dict.fromkeys(prompts))
        number = {prompt: place for place, prompt in enumerate(distinct)}
        self._owners = torch.tensor(
            [number[prompt] for prompt in prompts], device=device
        )  # [B] the row of each completion
        self._lengths = torch.tensor([len(prompt) for prompt in distinct], device=device)  # [R]
        self._mask: Tensor | None = None  # [R, 1, 1, S]; None if no row has a gap
        self._tokens: Tensor | None = None  # [B] not passed through the model yet
        self._cache: Any
        if plain:
            start = prefill(model, distinct, device)
            self._logits, self._cache = start.logits, _cache(start)  # [R, V]
            if bool(start.gaps.any()):
                visible = torch.arange(start.paths.shape[1], device=device) >= start.gaps[:, None]
                self._mask = additive(visible[:, None, None], model.dtype)
        else:
            ids = torch.tensor(distinct, device=device)
            output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
            self._logits, self._cache = output.logits[:, -1], output.past_key_values

    def advance(self, draws: Tensor) -> Chosen:
        """See Decoder."""
        if self._tokens is not None:
            self._step(self._tokens)
        chosen = choose(self._logits, self._temperature, draws[:, 0], self._owners)
        self._tokens = chosen.tokens
        return Chosen(chosen.tokens[:, None], chosen.log_probs[:, None])

    def keep(self, kept: Sequence[int]) -> None:
        """See Decoder."""
        index = torch.tensor(kept, device=self._owners.device)
        self._owners = self._owners[index]
        self._tokens = None if self._tokens is None else self._tokens[index]

    def _step(self, tokens: Tensor) -> None:
        """Pass the newest tokens through the model, one row per distinct history."""
        vocabulary = self._logits.shape[1]
        histories, self._owners = torch.unique(self._owners * vocabulary + tokens, return_inverse=True)
        self._follow(histories // vocabulary)
        output = self._model(
            input_ids=(histories % vocabulary)[:, None],
            attention_mask=self._mask,
            position_ids=self._lengths[:, None],
            past_key_values=self._cache,
            use_cache=True,
        )
        self._lengths = self._lengths + 1
        self._logits = output.logits[:, -1]

    def _follow(self, parents: Tensor) -> None:
        """Make each row the continuation of its parent, and make room for one more token."""
        if not torch.equal(parents, torch.arange(len(self._lengths), device=parents.device)):
            self._cache.reorder_cache(parents)
            self._lengths = self._lengths[parents]
            self._mask = None if self._mask is None else self._mask[parents]
        if self._mask is not None:
            self._mask = torch.cat([self._mask, self._mask.new_zeros(len(self._mask), 1, 1, 1)], dim=-1)


def _cache(start: Prefilled) -> DynamicCache:
    """With a row for each prompt."""
    cache = DynamicCache()
    everyone = torch.arange(len(start.paths), device=start.paths.device)
    for layer in range(len(start.layers)):
        cache.update(*start.rows(layer, everyone), layer)
    return cache
