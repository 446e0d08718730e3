"""A recorded step under two objectives: the one that trained it and the one that replays it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.token_records import StepFacts
from powermean.contracts.trajectories import TrajectoryRow, TrajectoryUpdate
from trainer.objectives import Algorithm, BatchFacts, build_algorithm


@dataclass(frozen=True)
class RecordedStep:
    """A recorded step and the two objectives."""

    facts: StepFacts
    rows: Mapping[int, TrajectoryRow]
    seen: Mapping[tuple[int, int], TrajectoryUpdate]  # (index, update) -> the recorded numbers
    recorded: Algorithm
    algorithm: Algorithm
    recorded_advantages: Mapping[int, float]  # by index; 0 if the objective drops the group
    advantages: Mapping[int, float]  # the same for the replay
    batches: Mapping[int, BatchFacts]  # of the replay, by update
    recorded_batches: Mapping[int, BatchFacts]

    @classmethod
    def of(
        cls,
        facts: StepFacts,
        rows: Sequence[TrajectoryRow],
        recorded: AlgorithmSpec,
        algorithm: AlgorithmSpec,
    ) -> "RecordedStep":
        before, after = build_algorithm(recorded), build_algorithm(algorithm)
        kept_before, kept = _kept(rows, before), _kept(rows, after)
        recorded_batches = {
            update.update: _batch(facts, update.trajectories, update.tokens) for update in facts.updates
        }
        return cls(
            facts=facts,
            rows={row.index: row for row in rows},
            seen={(row.index, update.update): update for row in rows for update in row.updates},
            recorded=before,
            algorithm=after,
            recorded_advantages={row.index: row.advantage if kept_before[row.index] else 0.0 for row in rows},
            advantages={
                index: advantage if kept[index] else 0.0
                for index, advantage in _advantages(facts, rows, before, after).items()
            },
            batches=recorded_batches
            if before.keep_group is after.keep_group
            else _counted(facts, rows, kept),
            recorded_batches=recorded_batches,
        )

    def trained(self, index: int, update: int) -> bool:
        """Whether either objective learns from the trajectory in that update."""
        row = self.rows[index]
        seen = self.seen.get((index, update))
        return (
            seen is not None
            and seen.p_reason != "not finite"
            and row.length > 0
            and (self.recorded_advantages[index] != 0 or self.advantages[index] != 0)
        )


def column(values: Sequence[float]) -> Tensor:
    """[n] float64."""
    return torch.tensor(values, dtype=torch.float64)


def _advantages(
    facts: StepFacts, rows: Sequence[TrajectoryRow], recorded: Algorithm, algorithm: Algorithm
) -> dict[int, float]:
    """The recorded ones if the rule is the same, else computed from all rewards of each group."""
    same_reward = (recorded.overlong_buffer, recorded.overlong_penalty) == (
        algorithm.overlong_buffer,
        algorithm.overlong_penalty,
    ) or recorded.overlong_buffer == algorithm.overlong_buffer == 0
    if recorded.advantage is algorithm.advantage and same_reward:
        return {row.index: row.advantage for row in rows}
    shaped = algorithm.shape_rewards(
        column([row.reward for row in rows]),
        torch.tensor([row.length for row in rows]),
        facts.max_new_tokens,
    )
    found = algorithm.advantages(shaped, torch.tensor([row.group for row in rows])).tolist()
    return {row.index: advantage for row, advantage in zip(rows, found, strict=True)}


def _kept(rows: Sequence[TrajectoryRow], algorithm: Algorithm) -> dict[int, bool]:
    rewards, groups = column([row.reward for row in rows]), torch.tensor([row.group for row in rows])
    kept = algorithm.keep(rewards, groups).tolist() if rows else []
    return {row.index: keep for row, keep in zip(rows, kept, strict=True)}


def _counted(
    facts: StepFacts, rows: Sequence[TrajectoryRow], kept: Mapping[int, bool]
) -> dict[int, BatchFacts]:
    """The minibatches' denominators, recounted because other groups are kept."""
    counts = {update.update: [0, 0] for update in facts.updates}
    for row in rows:
        for update in row.updates:
            if kept[row.index] and row.length > 0 and update.p_reason != "not finite":
                counts[update.update][0] += 1
                counts[update.update][1] += row.length
    return {update: _batch(facts, *count) for update, count in counts.items()}


def _batch(facts: StepFacts, trajectories: int, tokens: int) -> BatchFacts:
    return BatchFacts(
        trajectories=trajectories,
        tokens=tokens,
        max_tokens=facts.max_new_tokens,
        reward_std=facts.reward_std,
    )
