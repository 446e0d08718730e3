"""Prompts through the model, each distinct beginning once and no padding.

The prompts are a tree of tokens in one row of the model, numbered depth first: token k is an ancestor of
token q, or q itself, iff k <= q < end[k]. Large trees are cut between prompts: a mask grows with the square
of its tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rollout.transformers.attention import mask_of

Model = Any  # transformers' models are untyped
Prompt = tuple[int, ...]

# Tokens of a tree: on a CPU longer rows are no faster, on a GPU shorter ones wait for launches.
MOST_TOKENS = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True)
class Prefilled:
    """P distinct prompts, N tokens in all their trees, the longest prompt of W."""

    logits: Tensor  # [P, V] after each prompt
    layers: list[tuple[Tensor, Tensor]]  # keys and values [H, N, D]
    paths: Tensor  # [P, W] the tokens of each prompt, flush right; 0 on the gap before them
    gaps: Tensor  # [P] W less the prompt's length

    def rows(self, layer: int, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [B, H, W, D] for rows of these prompts [B]."""
        keys, values = (part[:, self.paths[prompts]].transpose(0, 1) for part in self.layers[layer])
        return keys, values


def prefill(model: Model, prompts: Sequence[Prompt], device: torch.device) -> Prefilled:
    """Pass distinct prompts through a model whose cache is plain (see `is_plain`)."""
    order = sorted(range(len(prompts)), key=lambda place: prompts[place])
    trees = list(_trees([prompts[place] for place in order], MOST_TOKENS.get(device.type, 4096)))
    passed = [_pass(model, tree, device) for tree in trees]
    width = max(map(len, prompts))
    paths = torch.zeros(len(prompts), width, dtype=torch.int64)
    first, place = 0, iter(order)
    for tree in trees:
        for path in tree.paths:
            paths[next(place), width - len(path) :] = torch.tensor(path) + first
        first += len(tree.tokens)
    logits = torch.cat([logits for logits, _ in passed])
    return Prefilled(
        logits=logits[torch.tensor(order, device=device).argsort()],
        layers=[_joined(layers) for layers in zip(*(layers for _, layers in passed), strict=True)],
        paths=paths.to(device),
        gaps=torch.tensor([width - len(prompt) for prompt in prompts], device=device),
    )


@dataclass
class _Tree:
    tokens: list[int] = field(default_factory=list)
    depth: list[int] = field(default_factory=list)
    end: list[int] = field(default_factory=list)  # one past the last token below
    paths: list[list[int]] = field(default_factory=list)  # of each prompt: its tokens' numbers

    def add(self, prompt: Prompt, shared: int) -> None:
        """A prompt that has its first `shared` tokens in common with the last one, and no more with any."""
        path = self.paths[-1][:shared] if shared else []
        first, new = len(self.tokens), len(prompt) - shared
        path = [*path, *range(first, first + new)]
        self.tokens += prompt[shared:]
        self.depth += range(shared, len(prompt))
        self.end += [0] * new
        for node in path:
            self.end[node] = first + new
        self.paths.append(path)


def _trees(prompts: Sequence[Prompt], most: int) -> Iterator[_Tree]:
    """Trees of at most `most` tokens, or of a single prompt; prompts in lexical order, and distinct."""
    tree = _Tree()
    last: Prompt = ()
    for prompt in prompts:
        shared = _common(prompt, last)
        if tree.paths and len(tree.tokens) + len(prompt) - shared > most:
            yield tree
            tree, shared = _Tree(), 0
        tree.add(prompt, shared)
        last = prompt
    yield tree


def _common(one: Prompt, other: Prompt) -> int:
    """How many tokens both begin with."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _pass(model: Model, tree: _Tree, device: torch.device) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits [P, V] after the tree's prompts, and each layer's keys and values [H, S, D]."""
    mask = None
    if len(tree.paths) > 1:
        node, end = torch.arange(len(tree.tokens), device=device), torch.tensor(tree.end, device=device)
        seen = (node[None, :] <= node[:, None]) & (node[:, None] < end[None, :])
        mask = mask_of(seen[None, None], model.dtype)
    output = model(
        input_ids=torch.tensor([tree.tokens], device=device),
        attention_mask=mask,
        position_ids=torch.tensor([tree.depth], device=device),
        use_cache=True,
        logits_to_keep=torch.tensor([path[-1] for path in tree.paths], device=device),
    )
    return output.logits[0], [(layer.keys[0], layer.values[0]) for layer in output.past_key_values.layers]


def _joined(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    if len(parts) == 1:
        return parts[0]
    keys, values = zip(*parts, strict=True)
    return torch.cat(keys, dim=1), torch.cat(values, dim=1)
