"""The task of benchmarks/learning.py: sort letters, with a tiny Llama that does it badly to begin with.

A prompt is `length` different symbols of `alphabet` in random order and a separator; the completion is the
same symbols in order. It is always `length` tokens long, so every arm trains on exactly as many tokens. The
reward is the share of the completion before its first mistake: hardly any completion is wholly right at the
start, and the share still says which of two is better.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from rollout.transformers.token_choice import choose

SEPARATOR = 0


@dataclass(frozen=True)
class Task:
    """How much there is to sort, how large the model is, and how much it is shown beforehand."""

    length: int = 32
    alphabet: int = 40
    hidden: int = 64
    layers: int = 2
    lessons: int = 220  # supervised updates
    lesson_size: int = 64  # sequences in each
    noise: float = 0.03  # share of the symbols that the lessons get wrong

    @property
    def vocabulary(self) -> int:
        return self.alphabet + 1


def problems(task: Task, count: int, generator: torch.Generator) -> Tensor:
    """Prompts [count, length + 1] int64: different symbols from 1 to `alphabet`, then the separator."""
    keys = torch.rand(count, task.alphabet, generator=generator)
    symbols = keys.argsort(-1)[:, : task.length] + 1
    return torch.cat([symbols, torch.full((count, 1), SEPARATOR)], dim=1)


def solutions(prompts: Tensor) -> Tensor:
    """The right completions [N, length] of prompts [N, length + 1]."""
    return prompts[:, :-1].sort(-1).values


def rewards(tokens: Tensor, prompts: Tensor) -> Tensor:
    """Share of each completion before its first mistake [N] float64, 1 if all is right; both [N, ...]."""
    right = (tokens == solutions(prompts)).long()
    return right.cumprod(-1).sum(-1).double() / tokens.shape[1]


def untrained(task: Task) -> LlamaForCausalLM:
    """A Llama of random weights. At this size an initial spread of 0.02 learns nothing."""
    config = LlamaConfig(
        vocab_size=task.vocabulary,
        hidden_size=task.hidden,
        intermediate_size=2 * task.hidden,
        num_hidden_layers=task.layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2 * task.length + 2,
        initializer_range=0.12,
        tie_word_embeddings=True,
        pad_token_id=None,
        eos_token_id=None,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config).train(False)


def warmed_up(task: Task, seed: int) -> LlamaForCausalLM:
    """A model that knows the task but was shown wrong symbols too, so that sampling goes astray."""
    torch.manual_seed(seed)
    model = untrained(task)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    random = torch.Generator().manual_seed(seed)
    for _ in range(task.lessons):
        prompts = problems(task, task.lesson_size, random)
        shown = corrupted(solutions(prompts), task, random)
        ids = torch.cat([prompts, shown], dim=1)
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits[:, task.length :]
        cross_entropy(logits.flatten(0, 1), shown.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def corrupted(completions: Tensor, task: Task, random: torch.Generator) -> Tensor:
    """Completions [N, T] in which `noise` of the symbols are others, drawn from the whole alphabet."""
    wrong = torch.rand(completions.shape, generator=random) < task.noise
    return torch.where(
        wrong, torch.randint(1, task.vocabulary, completions.shape, generator=random), completions
    )


def sampling_draws(rows: int, task: Task, random: torch.Generator) -> Tensor:
    """[rows, length] float64 in [0, 1): what `sample` draws tokens with."""
    return torch.rand(rows, task.length, generator=random, dtype=torch.float64)


@torch.inference_mode()
def sample(
    model: LlamaForCausalLM, prompts: Tensor, draws: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Completions of prompts [K, P], G each: tokens and their log-probs, [K * G, T] both.

    draws [K * G, T] float64 in [0, 1) is all the randomness there is. A prompt is computed once a group.
    """
    size = len(draws) // len(prompts)
    output = model(input_ids=prompts, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
    cache = output.past_key_values
    cache.batch_repeat_interleave(size)
    logits = output.logits[:, -1].repeat_interleave(size, 0)
    tokens, log_probs = [], []
    for place in range(draws.shape[1]):
        chosen = choose(logits, temperature, draws[:, place])
        tokens.append(chosen.tokens)
        log_probs.append(chosen.log_probs)
        if place + 1 < draws.shape[1]:
            output = model(input_ids=chosen.tokens[:, None], past_key_values=cache, use_cache=True)
            logits = output.logits[:, -1]
    return torch.stack(tokens, 1), torch.stack(log_probs, 1)
