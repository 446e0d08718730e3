"""A step that the real Learner trained with a tiny random model, with the records of all tokens."""

from dataclasses import dataclass
from typing import Literal

import torch

from powermean.contracts.algorithms import AlgorithmSpec
from powermean.contracts.token_records import StepFacts, TrajectoryTokens, UpdateFacts
from powermean.contracts.trajectories import TrajectoryRow
from tests.support.learners import learner
from trainer.data import Problem
from trainer.learner.training_batch import TrainingBatch
from trainer.learner.update_report import UpdateReport
from trainer.objectives import mismatch
from trainer.recording.report import StepReport
from trainer.recording.rows import trajectory_rows
from trainer.recording.tokens import token_records
from trainer.rewards.grading import Grade
from trainer.rollouts.batching import Rollouts
from trainer.rollouts.dynamic_sampling import SamplingFacts

GROUPS, SIZE, LONGEST = 4, 8, 24
UPDATES = ([0, 1], [2, 3], [0, 2], [1, 3], [0, 1, 2, 3])


@dataclass(frozen=True)
class RecordedStep:
    """What a replay starts from."""

    facts: StepFacts
    rows: tuple[TrajectoryRow, ...]
    tokens: tuple[TrajectoryTokens, ...]
    distances: dict[int, float]


def recorded_step(
    spec: AlgorithmSpec, seed: int = 0, old_policy: Literal["trainer", "sampler"] = "trainer"
) -> RecordedStep:
    """Five updates of 4 groups of 8; group 1 has no spread of rewards."""
    given, rewards = _rollouts(seed), _rewards(seed)
    # micro-batches of one group: the replay's own ones are others
    one = learner(spec, micro_batch_tokens=40, learning_rate=6e-3)
    shaped = one.algorithm.shape_rewards(rewards, given.lengths, LONGEST)
    batch = TrainingBatch.start(
        7,
        given,
        advantages=one.algorithm.advantages(shaped, given.group),
        kept=one.algorithm.keep(rewards, given.group),
        rewards=rewards,
        progress=0.5,
        max_new_tokens=LONGEST,
        recorded=len(rewards),
        old_policy=old_policy,
    )
    one.score(batch, range(GROUPS))
    one.score_reference(batch, range(GROUPS))
    reports = [one.update(batch, groups, number) for number, groups in enumerate(UPDATES)]
    shared = StepFacts(
        step=7,
        progress=0.5,
        mean_reward=batch.mean_reward,
        reward_std=batch.reward_std,
        max_new_tokens=LONGEST,
        updates=tuple(
            UpdateFacts(
                update=report.update,
                epoch=report.update // 2,
                minibatch=report.update % 2,
                trajectories=report.trajectories,
                tokens=report.tokens_trained,
            )
            for report in reports
        ),
    )
    seen = [(report.update, report.tokens) for report in reports]
    records = token_records(given, len(rewards), batch.old_log_probs, seen, lambda ids: "x" * len(ids))
    return RecordedStep(
        facts=shared,
        rows=tuple(trajectory_rows(_report(batch, given, rewards, reports, shared))),
        tokens=tuple(record for record in records if record.updates),
        distances={r.update: r.distance_to_grpo for r in reports if r.distance_to_grpo is not None},
    )


def _rollouts(seed: int) -> Rollouts:
    chance = torch.Generator().manual_seed(seed)
    count = GROUPS * SIZE
    lengths = torch.randint(1, LONGEST + 1, (count,), generator=chance)
    mask = torch.arange(LONGEST) < lengths[:, None]
    return Rollouts(
        prompts=tuple(tuple(torch.randint(0, 19, (n,), generator=chance).tolist()) for n in (2, 5, 3, 4)),
        tokens=torch.randint(0, 19, (count, LONGEST), generator=chance) * mask,
        mask=mask,
        sampler_log_probs=-3 * torch.rand(count, LONGEST, generator=chance) * mask,
        truncated=torch.zeros(count, dtype=torch.bool),
        weight_version=torch.zeros(count, dtype=torch.int64),
    )


def _rewards(seed: int) -> torch.Tensor:
    given = torch.randint(0, 2, (GROUPS * SIZE,), generator=torch.Generator().manual_seed(seed + 5)).double()
    given[0], given[1], given[SIZE : 2 * SIZE] = 0.0, 1.0, 1.0
    return given


def _report(
    batch: TrainingBatch,
    given: Rollouts,
    rewards: torch.Tensor,
    reports: list[UpdateReport],
    facts: StepFacts,
) -> StepReport:
    return StepReport(
        step=7,
        rollouts=given,
        sampling=SamplingFacts(1, 0, rewards.reshape(GROUPS, SIZE), int(given.mask.sum())),
        problems=[Problem(id=str(group), prompt="", answer="") for group in range(GROUPS)],
        texts=[""] * (GROUPS * SIZE),
        grades=[Grade(reward) for reward in rewards.tolist()],
        advantages=batch.advantages,
        usable=batch.usable,
        entropy=batch.entropy,
        mismatch=mismatch(given.sampler_log_probs, given.sampler_log_probs, given.mask, "off", 2.0),
        updates=reports,
        tokens_so_far=0,
        publish_difference=0.0,
        penalties=torch.zeros_like(rewards),
        old_log_probs=batch.old_log_probs,
        facts=facts,
    )
