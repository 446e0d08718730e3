"""The policy: log-probs of completions under a Hugging Face causal language model.

Log-probs are those of softmax(logits / temperature), the distribution that completions are sampled from.
Weights and optimiser are float32; with bfloat16 the forward pass runs under autocast, so that small updates
are not rounded away, and the log-softmax is in float32 all the same.

The prompt is computed once per group: its key/value cache is repeated G times, with gradients through it,
and only the completions' tokens go through the model G times. A model whose cache can't be repeated so (a
recurrent or sliding one) takes the plain way: prompt and completion whole. Which one holds is tried on the
model itself, not guessed.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer

from trainer.failures import TrainingError, cuda_unavailable, is_out_of_memory
from trainer.rollouts.batching import GroupBatch

# Largest log-prob difference between the two ways that rounding explains.
_AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.25}


@dataclass(frozen=True)
class Scores:
    """Of each completion token; values on padding mean nothing."""

    log_probs: Tensor  # [B, T] float32, nats
    entropy: Tensor | None  # [B, T] float32, nats, detached


@dataclass(frozen=True)
class Policy:
    """A causal language model, with an adapter or without, and how its completions are scored."""

    model: PreTrainedModel | PeftModel
    temperature: float
    dtype: torch.dtype
    device: torch.device
    shared_prompts: bool

    def score(self, batch: GroupBatch, *, entropy: bool = False) -> Scores:
        """Log-probs (with gradients, if enabled) of the batch's completion tokens."""
        way = _score_shared if self.shared_prompts else _score_plain
        with self._precision():
            return way(self._forward, _to(batch, self.device), self.temperature, entropy)

    def _forward(self, **inputs: Any) -> Any:
        return self.model(**inputs)

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16)


def load_policy(
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    temperature: float,
    gradient_checkpointing: bool = False,
) -> Policy:
    """The model in `folder`, dropout off. Raises TrainingError (unknown_model) when it can't be loaded."""
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
            attn_implementation="sdpa",
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if is_out_of_memory(error):
            raise
        raise TrainingError(
            "unknown_model",
            f"the model in {folder} can't be loaded: {error}",
            path="model",
            remedy="it must be a causal language model that transformers knows, with safetensors weights",
        ) from error
    model.to(device)  # type: ignore[arg-type]  # transformers wraps nn.Module.to, which hides its signature
    return make_policy(
        model, dtype=dtype, temperature=temperature, gradient_checkpointing=gradient_checkpointing
    )


def make_policy(
    model: PreTrainedModel, *, dtype: torch.dtype, temperature: float, gradient_checkpointing: bool = False
) -> Policy:
    """A policy around a float32 model that is on its device already."""
    device = next(model.parameters()).device
    model.train(False)
    shared = False
    if gradient_checkpointing:  # it recomputes layers, so it works without a cache only
        without_dropout(model).train()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    else:
        shared = _cache_repeats(Policy(model, temperature, dtype, device, shared_prompts=True))
    return Policy(model, temperature, dtype, device, shared)


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Switch dropout off in training mode too: ratios compare two passes over the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(getattr(module, "attention_dropout", None), float):
            setattr(module, "attention_dropout", 0.0)  # noqa: B010 (not declared on nn.Module)
    return model


def resolve_device(wanted: str, gpus: int) -> torch.device:
    """auto takes CUDA where GPUs are allocated. Raises TrainingError (cuda_unavailable)."""
    if wanted == "cpu" or (wanted == "auto" and gpus == 0):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise cuda_unavailable()
    return torch.device("cuda", 0)


def resolve_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """auto is float32 on a CPU and bfloat16 on CUDA."""
    if wanted == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


_Forward = Callable[..., Any]


def _score_shared(forward: _Forward, batch: GroupBatch, temperature: float, entropy: bool) -> Scores:
    """One pass over the prompts, one over the completions with the prompts' cache repeated."""
    groups, size = batch.prompts.shape[0], batch.group_size
    lengths = batch.prompt_mask.sum(-1)
    prompt = forward(
        input_ids=batch.prompts,
        attention_mask=batch.prompt_mask,
        position_ids=(batch.prompt_mask.cumsum(-1) - 1).clamp(min=0),
        past_key_values=DynamicCache(),
        use_cache=True,
        logits_to_keep=1,
    )
    owner = torch.arange(groups, device=batch.tokens.device).repeat_interleave(size)
    first = _score_first(prompt.logits[:, -1], owner, batch.tokens[:, 0], temperature, entropy)
    if batch.tokens.shape[1] == 1:
        return first
    cache = prompt.past_key_values
    cache.batch_repeat_interleave(size)
    inputs = batch.tokens[:, :-1]
    mask = torch.cat([batch.prompt_mask[owner], torch.ones_like(inputs)], dim=1)
    rest = forward(
        input_ids=inputs,
        attention_mask=mask,
        position_ids=lengths[owner, None] + torch.arange(inputs.shape[1], device=inputs.device),
        past_key_values=cache,
        use_cache=True,
    )
    others = _score_logits(rest.logits, batch.tokens[:, 1:], temperature, entropy)
    return _joined(first, others)


def _score_plain(forward: _Forward, batch: GroupBatch, temperature: float, entropy: bool) -> Scores:
    """Prompt and completion whole, row by row."""
    size, longest = batch.group_size, batch.tokens.shape[1]
    mask = torch.cat([batch.prompt_mask.repeat_interleave(size, 0), torch.ones_like(batch.tokens)], dim=1)
    output = forward(
        input_ids=torch.cat([batch.prompts.repeat_interleave(size, 0), batch.tokens], dim=1),
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=longest + 1,
    )
    logits = output.logits[:, -(longest + 1) : -1]  # a model may ignore logits_to_keep
    return _score_logits(logits, batch.tokens, temperature, entropy)


def _score_first(logits: Tensor, owner: Tensor, tokens: Tensor, temperature: float, entropy: bool) -> Scores:
    """The first token of each completion: one distribution [K, V] per group, tokens [K * G] -> [K * G, 1]."""
    scaled = logits.float() / temperature
    log_softmax = scaled.log_softmax(-1)
    log_probs = log_softmax[owner, tokens][:, None]
    return Scores(log_probs, _entropy(log_softmax)[owner, None] if entropy else None)


def _score_logits(logits: Tensor, tokens: Tensor, temperature: float, entropy: bool) -> Scores:
    """logits [B, T, V], tokens [B, T]."""
    scaled = logits.float() / temperature
    log_softmax = scaled.log_softmax(-1)
    log_probs = log_softmax.gather(-1, tokens[..., None])[..., 0]
    return Scores(log_probs, _entropy(log_softmax) if entropy else None)


@torch.no_grad()
def _entropy(log_softmax: Tensor) -> Tensor:
    return -torch.einsum("...v,...v->...", log_softmax.exp(), log_softmax)


def _joined(first: Scores, rest: Scores) -> Scores:
    entropy = None
    if first.entropy is not None and rest.entropy is not None:
        entropy = torch.cat([first.entropy, rest.entropy], dim=1)
    return Scores(torch.cat([first.log_probs, rest.log_probs], dim=1), entropy)


def _to(batch: GroupBatch, device: torch.device) -> GroupBatch:
    if batch.tokens.device == device:
        return batch
    return GroupBatch(
        prompts=batch.prompts.to(device),
        prompt_mask=batch.prompt_mask.to(device),
        tokens=batch.tokens.to(device),
        mask=batch.mask.to(device),
        rows=batch.rows,
    )


@torch.no_grad()
def _cache_repeats(policy: Policy) -> bool:
    """Whether the shared way gives the plain way's log-probs on a small batch of two unequal prompts."""
    vocabulary = int(policy.model.get_input_embeddings().num_embeddings)  # type: ignore[arg-type]
    ids = torch.arange(1, 1 + 2 * 5 + 4 * 3) * 7 % vocabulary
    batch = GroupBatch(
        prompts=ids[:10].reshape(2, 5),
        prompt_mask=torch.tensor([[1, 1, 1, 1, 1], [0, 0, 1, 1, 1]]),
        tokens=ids[10:].reshape(4, 3),
        mask=torch.ones(4, 3, dtype=torch.bool),
        rows=torch.arange(4),
    )
    batch = _to(batch, policy.device)
    with policy._precision():
        probe = policy.model(input_ids=batch.prompts, use_cache=True)
        cache = getattr(probe, "past_key_values", None)
        if type(cache) is not DynamicCache or any(type(layer) is not DynamicLayer for layer in cache.layers):
            return False
        shared = _score_shared(policy._forward, batch, 1.0, False).log_probs
        plain = _score_plain(policy._forward, batch, 1.0, False).log_probs
    return bool((shared - plain).abs().max() <= _AGREEMENT[policy.dtype])
