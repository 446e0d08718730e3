"""Rollout batches as tensors: groups stay together, from the whole batch down to a minibatch.

K prompts (groups), G completions each, N = K G trajectories in order of group, T tokens at most.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from powermean.contracts.rollout import Completion, VersionSpan


@dataclass(frozen=True)
class Trajectories:
    """Token ids of some rows: a prompt of at least one token each, and a completion, which may be empty."""

    prompts: Sequence[Sequence[int]]
    completions: Sequence[Sequence[int]]

    def __len__(self) -> int:
        return len(self.prompts)


@dataclass(frozen=True)
class Rollouts:
    """All that was sampled for one step. Row i * G + j is completion j of prompt i, padded on the right."""

    prompts: tuple[tuple[int, ...], ...]  # K
    tokens: Tensor  # [N, T] int64
    mask: Tensor  # [N, T] bool: completion tokens, the terminating one included
    sampler_log_probs: Tensor  # [N, T] float32, nats, of the engine
    truncated: Tensor  # [N] bool: cut off by max_new_tokens
    weight_version: Tensor  # [N] int64: oldest weights that made a token of it
    versions: tuple[tuple[VersionSpan, ...], ...] = ()  # N: which weights made which tokens

    @property
    def group_size(self) -> int:
        return self.tokens.shape[0] // len(self.prompts)

    @property
    def group(self) -> Tensor:
        """Group of each trajectory [N] int64."""
        return torch.arange(len(self.prompts)).repeat_interleave(self.group_size)

    @property
    def lengths(self) -> Tensor:
        """Tokens of each completion [N] int64."""
        return self.mask.sum(-1)

    def rows(self, groups: Sequence[int]) -> Tensor:
        """Row numbers of the groups' trajectories [len(groups) * G] int64, group by group."""
        size = self.group_size
        starts = torch.tensor(groups, dtype=torch.int64) * size
        return (starts[:, None] + torch.arange(size)).reshape(-1)

    def trajectories(self, rows: Sequence[int]) -> Trajectories:
        """The token ids of these rows, in this order."""
        lengths = self.lengths.tolist()
        return Trajectories(
            prompts=[self.prompts[row // self.group_size] for row in rows],
            completions=[self.tokens[row, : lengths[row]].tolist() for row in rows],
        )

    def select(self, groups: Sequence[int]) -> "Rollouts":
        """These groups alone, in this order."""
        rows = self.rows(groups)
        return Rollouts(
            prompts=tuple(self.prompts[group] for group in groups),
            tokens=self.tokens[rows],
            mask=self.mask[rows],
            sampler_log_probs=self.sampler_log_probs[rows],
            truncated=self.truncated[rows],
            weight_version=self.weight_version[rows],
            versions=tuple(self.versions[row] for row in rows.tolist()) if self.versions else (),
        )


def collate(
    prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[Completion]], pad_token_id: int
) -> Rollouts:
    """Tensors of a response of the rollout service. completions[i][j] is the j-th of prompt i."""
    flat = [completion for group in completions for completion in group]
    longest = max(1, *(len(completion.token_ids) for completion in flat))
    tokens = torch.full((len(flat), longest), pad_token_id, dtype=torch.int64)
    mask = torch.zeros((len(flat), longest), dtype=torch.bool)
    log_probs = torch.zeros((len(flat), longest), dtype=torch.float32)
    for row, completion in enumerate(flat):
        count = len(completion.token_ids)
        tokens[row, :count] = torch.tensor(completion.token_ids, dtype=torch.int64)
        log_probs[row, :count] = torch.tensor(completion.logprobs, dtype=torch.float32)
        mask[row, :count] = True
    return Rollouts(
        prompts=tuple(tuple(prompt) for prompt in prompts),
        tokens=tokens,
        mask=mask,
        sampler_log_probs=log_probs,
        truncated=torch.tensor([completion.finish_reason == "length" for completion in flat]),
        weight_version=torch.tensor(
            [min((span.version for span in completion.weight_versions), default=0) for completion in flat]
        ),
        versions=tuple(completion.weight_versions for completion in flat),
    )


def joined(parts: Sequence[Rollouts], pad_token_id: int) -> Rollouts:
    """Several batches with the same G as one, padded to the longest completion."""
    longest = max(part.tokens.shape[1] for part in parts)

    def rows(name: str, value: float) -> Tensor:
        wide = [getattr(part, name) for part in parts]
        return torch.cat([pad(one, (0, longest - one.shape[1]), value=value) for one in wide])

    return Rollouts(
        prompts=tuple(prompt for part in parts for prompt in part.prompts),
        tokens=rows("tokens", pad_token_id),
        mask=rows("mask", False),
        sampler_log_probs=rows("sampler_log_probs", 0.0),
        truncated=torch.cat([part.truncated for part in parts]),
        weight_version=torch.cat([part.weight_version for part in parts]),
        versions=tuple(version for part in parts for version in part.versions),
    )


def minibatches(groups: int, count: int, generator: torch.Generator) -> list[list[int]]:
    """The numbers of `groups` groups, shuffled and dealt into `count` minibatches of equal size."""
    order = torch.randperm(groups, generator=generator).tolist()
    size = groups // count
    return [sorted(order[start : start + size]) for start in range(0, groups, size)]
