"""A step's rollout batch, from as many rounds of prompts as the algorithm needs.

DAPO's dynamic sampling (arXiv 2503.14476): groups whose completions all have the same reward have no
gradient, so further prompts are sampled until the batch is full of groups with spread.
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
    """Completions with their prompts and grades: K groups of G, N = K G in order of group."""

    problems: tuple[Problem, ...]  # K
    rollouts: Rollouts
    texts: tuple[str, ...]  # N
    grades: tuple[Grade, ...]  # N

    @property
    def rewards(self) -> Tensor:
        """[N] float64, as graded."""
        return torch.tensor([grade.reward for grade in self.grades], dtype=torch.float64)

    def select(self, groups: Sequence[int]) -> "GradedRollouts":
        """Only these groups, in this order."""
        rows = self.rollouts.rows(groups).tolist()
        return GradedRollouts(
            problems=tuple(self.problems[group] for group in groups),
            rollouts=self.rollouts.select(groups),
            texts=tuple(self.texts[row] for row in rows),
            grades=tuple(self.grades[row] for row in rows),
        )

    def followed_by(self, other: "GradedRollouts", pad_token_id: int) -> "GradedRollouts":
        """Both batches, which have the same G, as one."""
        return GradedRollouts(
            problems=self.problems + other.problems,
            rollouts=joined([self.rollouts, other.rollouts], pad_token_id),
            texts=self.texts + other.texts,
            grades=self.grades + other.grades,
        )


@dataclass(frozen=True)
class SamplingFacts:
    """Results of all rounds of a step, including what is not in the batch."""

    rounds: int
    groups_dropped: int  # sampled, but filtered out by the algorithm or not needed
    rewards: Tensor  # [groups, G] float64, as graded
    tokens: int


def fill_batch(
    sample_round: Callable[[int], GradedRollouts], algorithm: Algorithm, pad_token_id: int
) -> tuple[GradedRollouts, SamplingFacts]:
    """Sample round 0, 1, ... until as many groups are kept as a round has, or no round is left.

    The batch always has as many groups as a round. If too few are kept, the first of the others fill it, and
    the algorithm's filter excludes them from the update (if it excludes all, there is no optimiser step).
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
    """The groups that pass the algorithm's filter."""
    kept = algorithm.keep(batch.rewards, batch.rollouts.group)
    return kept.reshape(len(batch.problems), -1).any(1).nonzero()[:, 0].tolist()


def fullest(batch: GradedRollouts, wanted: int, algorithm: Algorithm) -> GradedRollouts:
    """`wanted` groups in order of sampling: the first kept ones, and others if those are too few."""
    kept = kept_groups(batch, algorithm)[:wanted]
    others = sorted(set(range(len(batch.problems))) - set(kept))
    return batch.select(sorted(kept + others[: wanted - len(kept)]))
