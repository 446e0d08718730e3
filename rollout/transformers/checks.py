"""Finds out by trying what a model supports: transformers has models of many kinds."""

from collections.abc import Callable, Sequence

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from rollout.engine import EngineError
from rollout.transformers.attention import decoding_attention
from rollout.transformers.decoding import Decoder
from rollout.transformers.prefill import Model, Prompt
from rollout.transformers.tree_decoder import TreeDecoder

_PROMPTS: tuple[Prompt, ...] = ((0, 1, 1), (0,))  # a shared prefix, and a gap
_TOKENS = 2
_NATS = {torch.float32: 1e-3}  # tolerance of log-probs
_NATS_LOW_PRECISION = 0.25
_UNSUPPORTED = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)


@torch.inference_mode()
def is_plain(model: Model) -> bool:
    """Whether it is a model of full attention whose mask, positions and cache can be set from outside.

    Then prompts of different lengths can be sampled in one batch, with our own attention. Raises EngineError
    (unsupported_model) where nothing can be sampled token by token, as it keeps no keys and values.
    """
    device = next(model.parameters()).device
    output = model(input_ids=torch.tensor([[1]], device=device), use_cache=True)
    cache = getattr(output, "past_key_values", None)
    if cache is None:
        raise EngineError(
            500,
            "unsupported_model",
            f"the transformers engine needs a cache of keys and values, which {type(model).__name__} has not",
            remedy="Set rollout.engine to vllm.",
        )
    if type(cache) is not DynamicCache or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return False
    with decoding_attention(model, grouped=True):
        return agrees(model, lambda prompts: TreeDecoder(model, prompts, 1.0, plain=True))


@torch.inference_mode()
def agrees(model: Model, decoder_of: Callable[[Sequence[Prompt]], Decoder]) -> bool:
    """Whether a decoder gives the log-probs of passes over whole sequences, without cache and batch."""
    device = next(model.parameters()).device
    draws = torch.full((len(_PROMPTS), 1), 0.5, dtype=torch.float64, device=device)
    tokens, log_probs = [], []
    try:
        decoder = decoder_of(_PROMPTS)
        for _ in range(_TOKENS):
            chosen = decoder.advance(draws)
            tokens.append(chosen.tokens[:, 0].tolist())
            log_probs.append(chosen.log_probs[:, 0].tolist())
    except _UNSUPPORTED:
        return False
    tolerance = _NATS.get(model.dtype, _NATS_LOW_PRECISION)
    for row, prompt in enumerate(_PROMPTS):
        completion = [step[row] for step in tokens]
        logits = model(input_ids=torch.tensor([[*prompt, *completion]], device=device)).logits[0]
        expected = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
        for place, token in enumerate(completion):
            if not abs(float(expected[place, token]) - log_probs[place][row]) <= tolerance:
                return False
    return True
