"""Passes prompts through the model without padding, and each shared prefix once.

The prompts form a tree of tokens, which is one row of the model's input. Nodes are numbered depth first: node
k is an ancestor of node q, or q itself, iff k <= q < end[k]. Large trees are split between prompts, because a
mask grows with the square of its tree.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from rollout.transformers.attention import additive

Model = Any  # transformers' models are untyped
Prompt = tuple[int, ...]

# Nodes of a tree. Longer rows are no faster on a CPU; on a GPU shorter ones are bound by kernel launches.
MOST_TOKENS = {"cpu": 512, "cuda": 4096}


@dataclass(frozen=True)
class Prefilled:
    """P distinct prompts of at most W tokens, N nodes in all their trees."""

    logits: Tensor  # [P, V] after each prompt
    layers: list[tuple[Tensor, Tensor]]  # keys and values [H, N, D]
    paths: Tensor  # [P, W] the nodes of each prompt, aligned right; 0 in the gap on their left
    gaps: Tensor  # [P] W minus the prompt's length

    def rows(self, layer: int, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values [B, H, W, D] for rows that begin with these prompts [B]."""
        keys, values = (part[:, self.paths[prompts]].transpose(0, 1) for part in self.layers[layer])
        return keys, values


def prefill(model: Model, prompts: Sequence[Prompt], device: torch.device) -> Prefilled:
    """Pass distinct prompts through a model; `is_plain(model)` must hold."""
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
    end: list[int] = field(default_factory=list)  # one past the last node below
    paths: list[list[int]] = field(default_factory=list)  # the nodes of each prompt

    def add(self, prompt: Prompt, shared: int) -> None:
        """Add a prompt that shares exactly its first `shared` tokens with the previous one."""
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
    """Trees of at most `most` nodes, or of a single prompt. Prompts are distinct and in lexical order."""
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
    """Length of the common prefix."""
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _pass(model: Model, tree: _Tree, device: torch.device) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Logits [P, V] after the tree's prompts, and each layer's keys and values [H, S, D]."""
    mask = None
    if len(tree.paths) > 1:
        node, end = torch.arange(len(tree.tokens), device=device), torch.tensor(tree.end, device=device)
        visible = (node[None, :] <= node[:, None]) & (node[:, None] < end[None, :])
        mask = additive(visible[None, None], model.dtype)
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
