"""Everything recorded of a step, before it becomes rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from powermean.contracts.token_records import StepFacts, UpdateFacts
from trainer.data import Problem
from trainer.learner.training_batch import TrainingBatch
from trainer.learner.update_report import UpdateReport
from trainer.objectives import Mismatch, mismatch
from trainer.rewards.grading import Grade
from trainer.rollouts.batching import Rollouts
from trainer.rollouts.dynamic_sampling import GradedRollouts, SamplingFacts
from trainer.run_context import Run


@dataclass(frozen=True)
class StepReport:
    """The results of a step, before they become rows. N trajectories in order of group."""

    step: int
    rollouts: Rollouts
    sampling: SamplingFacts
    problems: Sequence[Problem]
    texts: Sequence[str]
    grades: Sequence[Grade]
    advantages: Tensor  # [N] float64
    usable: Tensor  # [N] bool: False where log-probs are not finite
    entropy: Tensor  # [N] mean token entropy, NaN where not computed
    mismatch: Mismatch
    updates: Sequence[UpdateReport]
    tokens_so_far: int
    publish_difference: float
    penalties: Tensor  # [N] float64: penalties subtracted from the rewards
    old_log_probs: Tensor  # [N, T] pi_old, NaN where not scored
    facts: StepFacts


def step_report(
    run: Run,
    batch: TrainingBatch,
    graded: GradedRollouts,
    facts: SamplingFacts,
    reports: Sequence[UpdateReport],
    difference: float,
) -> StepReport:
    """Collect what is recorded of a step; `difference` is the publish's, in nats."""
    algorithm = run.learner.algorithm
    return StepReport(
        step=batch.step,
        rollouts=graded.rollouts,
        sampling=facts,
        problems=graded.problems,
        texts=graded.texts,
        grades=graded.grades,
        advantages=batch.advantages,
        usable=batch.usable,
        entropy=batch.entropy.cpu(),
        mismatch=mismatch(
            batch.start_log_probs.cpu(),
            graded.rollouts.sampler_log_probs,
            batch.rollouts.mask,
            algorithm.importance_sampling_correction,
            algorithm.importance_sampling_clip_max,
        ),
        updates=reports,
        tokens_so_far=run.progress.tokens,
        publish_difference=difference,
        penalties=batch.penalties,
        old_log_probs=batch.old_log_probs.cpu(),
        facts=step_facts(batch, reports, run.spec.training.minibatches),
    )


def step_facts(batch: TrainingBatch, reports: Sequence[UpdateReport], minibatches: int) -> StepFacts:
    """What the step's updates have in common."""
    return StepFacts(
        step=batch.step,
        progress=batch.progress,
        mean_reward=batch.mean_reward,
        reward_std=batch.reward_std,
        max_new_tokens=batch.max_new_tokens,
        updates=tuple(
            UpdateFacts(
                update=report.update,
                epoch=report.update // minibatches,
                minibatch=report.update % minibatches,
                trajectories=report.trajectories,
                tokens=report.tokens_trained,
            )
            for report in reports
        ),
    )
