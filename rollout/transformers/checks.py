"""What a model can be asked for, found out by asking it: transformers' models are of many kinds."""

from collections.abc import Callable, Sequence

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from rollout.transformers.attention import attend_in_groups
from rollout.transformers.decoding import Decoder
from rollout.transformers.prefill import Model, Prompt
from rollout.transformers.tree_decoder import TreeDecoder

_PROMPTS: tuple[Prompt, ...] = ((0, 1, 1), (0,))  # one begins as the other, and leaves a gap beside it
_TOKENS = 2
_NATS = {torch.float32: 1e-3}  # how far log-probs may be off
_NATS_OF_OTHERS = 0.25
_UNABLE = (TypeError, ValueError, RuntimeError, AttributeError, LookupError)


@torch.inference_mode()
def make_plain(model: Model) -> bool:
    """Let the model attend in groups if its cache is plain, and say whether it is.

    A plain cache is that of full attention: any keys can be put into it and masked, so prompts of different
    lengths go together.
    """
    device = next(model.parameters()).device
    cache = model(input_ids=torch.tensor([[1]], device=device), use_cache=True).past_key_values
    if type(cache) is not DynamicCache or not all(type(layer) is DynamicLayer for layer in cache.layers):
        return False
    attend_in_groups(model)
    if agrees(model, lambda prompts: TreeDecoder(model, prompts, 1.0, plain=True)):
        return True
    model.set_attn_implementation("sdpa")
    return False


@torch.inference_mode()
def agrees(model: Model, decoder_of: Callable[[Sequence[Prompt]], Decoder]) -> bool:
    """Whether a decoder gives the log-probs of plain passes over prompt and completion."""
    device = next(model.parameters()).device
    draws = torch.full((len(_PROMPTS), 1), 0.5, dtype=torch.float64, device=device)
    tokens, log_probs = [], []
    try:
        decoder = decoder_of(_PROMPTS)
        for _ in range(_TOKENS):
            chosen = decoder.advance(draws)
            tokens.append(chosen.tokens[:, 0].tolist())
            log_probs.append(chosen.log_probs[:, 0].tolist())
    except _UNABLE:
        return False
    near = _NATS.get(model.dtype, _NATS_OF_OTHERS)
    for row, prompt in enumerate(_PROMPTS):
        completion = [step[row] for step in tokens]
        logits = model(input_ids=torch.tensor([[*prompt, *completion]], device=device)).logits[0]
        expected = logits.float().log_softmax(-1)[len(prompt) - 1 : -1]
        for place, token in enumerate(completion):
            if not abs(float(expected[place, token]) - log_probs[place][row]) <= near:
                return False
    return True
