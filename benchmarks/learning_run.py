"""One run of benchmarks/learning.py: a warmed-up model trained by one objective under one condition."""

import statistics
from collections import deque
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Literal

import torch
from learning_arms import Arm, Condition
from learning_task import Task, problems, rewards, sample, sampling_draws
from torch import Tensor
from transformers import LlamaForCausalLM

from powermean.contracts.training import OptimizerSpec
from trainer.learner.learner import Learner
from trainer.learner.optimizer import make_optimizer
from trainer.learner.training_batch import TrainingBatch
from trainer.learner.update_report import UpdateReport
from trainer.objectives import build_algorithm
from trainer.policy.loading import make_policy
from trainer.rollouts.batching import Rollouts, minibatches
from trainer.seeds import generator

MEASURED = ("p", "clip_fraction", "ess", "ess_at_1")  # docs/metrics.md


@dataclass(frozen=True)
class Plan:
    """What all runs have in common."""

    task: Task = field(default_factory=Task)
    steps: int = 24
    prompts: int = 8  # groups in a rollout batch
    group_size: int = 8
    learning_rate: float = 5e-4
    warmup_updates: int = 3
    state: Literal["float32", "8bit"] = "float32"  # of the optimiser
    held_out: int = 256  # problems, one sampled completion each

    @property
    def tokens(self) -> int:
        """Completion tokens that a run trains on."""
        return self.steps * self.prompts * self.group_size * self.task.length


@dataclass(frozen=True)
class Batch:
    """What one step samples, with its problems."""

    rollouts: Rollouts
    rewards: Tensor  # [N] float64


def train(
    start: LlamaForCausalLM, plan: Plan, arm: Arm, condition: Condition, seed: int
) -> dict[str, object]:
    """The record of one run. The same seed gives every arm the same problems, draws and minibatches."""
    model = deepcopy(start)
    spec = OptimizerSpec(
        learning_rate=plan.learning_rate, warmup_updates=plan.warmup_updates, state=plan.state
    )
    learner = Learner(
        policy=make_policy(model, dtype=torch.float32, temperature=1.0),
        reference=None,
        algorithm=build_algorithm(arm.spec),
        spec=spec,
        optimizer=make_optimizer(model, spec),
        micro_batch_tokens=4096,
        pad_token_id=0,
    )
    waiting = deque(sample_batch(model, plan, step, seed) for step in range(1, condition.lag + 1))
    curve, reports = [], []
    for step in range(1, plan.steps + 1):
        if step + condition.lag <= plan.steps:
            waiting.append(sample_batch(model, plan, step + condition.lag, seed))
        batch = waiting.popleft()
        curve.append(float(batch.rewards.mean()))
        reports += update(learner, batch, plan, condition, step, seed)
    return {
        "arm": arm.name,
        "condition": condition.name,
        "seed": seed,
        "curve": [round(reward, 4) for reward in curve],
        "held_out": held_out(model, plan, seed),
        "updates": learner.updates,
        "tokens": plan.tokens,
    } | observed(reports)


def sample_batch(model: LlamaForCausalLM, plan: Plan, step: int, seed: int) -> Batch:
    """The rollouts that step `step` trains on, under the model's present weights."""
    random = generator(seed, "rollout", step)
    prompts = problems(plan.task, plan.prompts, random)
    draws = sampling_draws(plan.prompts * plan.group_size, plan.task, random)
    tokens, log_probs = sample(model, prompts, draws, temperature=1.0)
    return Batch(
        Rollouts(
            prompts=tuple(map(tuple, prompts.tolist())),
            tokens=tokens.clone(),
            mask=torch.ones_like(tokens, dtype=torch.bool),
            sampler_log_probs=log_probs.clone(),
            truncated=torch.zeros(len(tokens), dtype=torch.bool),
            weight_version=torch.zeros(len(tokens), dtype=torch.int64),
        ),
        rewards(tokens, prompts.repeat_interleave(plan.group_size, 0)),
    )


def held_out(model: LlamaForCausalLM, plan: Plan, seed: int) -> dict[str, float]:
    """Mean reward and exact accuracy on the seed's held-out problems, at temperature 1 and greedy."""
    random = generator(seed, "evaluation")
    prompts = problems(plan.task, plan.held_out, random)
    draws = sampling_draws(plan.held_out, plan.task, random)
    found = {}
    for name, temperature in (("sampled", 1.0), ("greedy", 0.0)):
        reward = rewards(sample(model, prompts, draws, temperature)[0], prompts)
        found[f"{name}_reward"] = round(float(reward.mean()), 4)
        found[f"{name}_exact"] = round(float((reward == 1).double().mean()), 4)
    return found


def update(
    learner: Learner, batch: Batch, plan: Plan, condition: Condition, step: int, seed: int
) -> list[UpdateReport]:
    """All optimiser steps on one rollout batch.

    pi_old is the policy that sampled. For fresh rollouts that is the policy at the start of the step, as in
    the product; for stale ones it puts the staleness into the ratios that clip and p depend on.
    """
    rollouts, algorithm = batch.rollouts, learner.algorithm
    training = TrainingBatch.start(
        step,
        rollouts,
        advantages=algorithm.advantages(batch.rewards, rollouts.group),
        kept=algorithm.keep(batch.rewards, rollouts.group),
        rewards=batch.rewards,
        progress=(step - 1) / max(1, plan.steps - 1),
        max_new_tokens=plan.task.length,
        old_policy="sampler",
    )
    reports = []
    for epoch in range(condition.epochs):
        dealt = minibatches(plan.prompts, condition.minibatches, generator(seed, "minibatch", step, epoch))
        for groups in dealt:
            reports.append(learner.update(training, groups, len(reports)))
    return reports


def observed(reports: Sequence[UpdateReport]) -> dict[str, float]:
    """Means over the updates that find the policy moved: all but the first on each rollout batch."""
    moved = [report for report in reports if report.update > 0 and report.grad_norm is not None]
    values = {name: torch.cat([report.values[name][report.rows] for report in moved]) for name in MEASURED}
    p = values["p"][~values["p"].isnan()]
    distances = [report.distance_to_grpo for report in moved if report.distance_to_grpo is not None]
    return {name: round(float(found.nanmean()), 5) for name, found in values.items()} | {
        "p_below_0.95": round(float((p < 0.95).double().mean()), 5),
        "distance_to_grpo": round(statistics.fmean(distances), 5),
        "grad_norm": round(statistics.fmean(report.grad_norm or 0.0 for report in moved), 5),
    }
