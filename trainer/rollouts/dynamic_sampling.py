"""A step's rollout batch, from as many rounds of prompts as the algorithm asks for.

DAPO's dynamic sampling (arXiv 2503.14476): groups whose completions all have the same reward teach nothing,
so further prompts are sampled until the batch is full of groups that do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trainer.data import Problem
from trainer.objectives import Algorithm
from trainer.rewards.grading import Grade
from trainer.rollouts.batching import Rollouts, joined


@dataclass(frozen=True)
class GradedRollouts:
    """Completions with what was asked and what they are worth: K groups of G, N = K G in order of group."""

    problems: tuple[Problem, ...]  # K
    rollouts: Rollouts
    texts: tuple[str, ...]  # N
    grades: tuple[Grade, ...]  # N

    @property
    def rewards(self) -> Tensor:
        """[N] float64, as graded."""
        return torch.tensor([grade.reward for grade in self.grades], dtype=torch.float64)

    def select(self, groups: Sequence[int]) -> "GradedRollouts":
        """These groups alone, in this order."""
        rows = self.rollouts.rows(groups).tolist()
        return GradedRollouts(
            problems=tuple(self.problems[group] for group in groups),
            rollouts=self.rollouts.select(groups),
            texts=tuple(self.texts[row] for row in rows),
            grades=tuple(self.grades[row] for row in rows),
        )

    def followed_by(self, other: "GradedRollouts", pad_token_id: int) -> "GradedRollouts":
        """Both, with the same G, as one."""
        return GradedRollouts(
            problems=self.problems + other.problems,
            rollouts=joined([self.rollouts, other.rollouts], pad_token_id),
            texts=self.texts + other.texts,
            grades=self.grades + other.grades,
        )


@dataclass(frozen=True)
class SamplingFacts:
    """What all rounds of a step gave, also what did not come into the batch."""

    rounds: int
    groups_dropped: int  # sampled, but not kept by the algorithm or no longer wanted
    rewards: Tensor  # [groups, G] float64, as graded
    tokens: int


def fill_batch(
    sample_round: Callable[[int], GradedRollouts], algorithm: Algorithm, pad_token_id: int
) -> tuple[GradedRollouts, SamplingFacts]:
    """Sample round 0, 1, ... until as many groups are kept as a round has, or no round is left.

    The batch always has a round's number of groups: where too few are kept, the first of the others are in
    it, and the algorithm's filter takes those out of the update (where it is all of them: no optimiser step).
    """
    batch = sample_round(0)
    wanted = len(batch.problems)
    kept, rewards, tokens = kept_groups(batch, algorithm), [batch.rewards], int(batch.rollouts.mask.sum())
    while len(kept) < wanted and len(rewards) < algorithm.sampling_rounds:
        further = sample_round(len(rewards))
        rewards.append(further.rewards)
        tokens += int(further.rollouts.mask.sum())
        batch = fullest(batch.followed_by(further, pad_token_id), wanted, algorithm)
        kept = kept_groups(batch, algorithm)
    facts = SamplingFacts(
        rounds=len(rewards),
        groups_dropped=len(rewards) * wanted - len(kept),
        rewards=torch.cat(rewards).reshape(-1, batch.rollouts.group_size),
        tokens=tokens,
    )
    return batch, facts


def kept_groups(batch: GradedRollouts, algorithm: Algorithm) -> list[int]:
    """The groups that the algorithm's filter lets train."""
    kept = algorithm.keep(batch.rewards, batch.rollouts.group)
    return kept.reshape(len(batch.problems), -1).any(1).nonzero()[:, 0].tolist()


def fullest(batch: GradedRollouts, wanted: int, algorithm: Algorithm) -> GradedRollouts:
    """`wanted` groups in order of sampling: the first that are kept, and if they are too few, others."""
    kept = kept_groups(batch, algorithm)[:wanted]
    others = sorted(set(range(len(batch.problems))) - set(kept))
    return batch.select(sorted(kept + others[: wanted - len(kept)]))
