"""Group-based reinforcement learning, one step after the other:

    sample -> grade -> advantage -> several optimiser steps -> publish -> record

Step 0 is the evaluation before training; step k leaves the weights of version k at the rollout service.
With rollout.max_staleness a thread samples and grades coming steps' batches meanwhile (docs/overlap.md).
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from powermean.contracts.attempts import CheckpointCommit
from powermean.contracts.token_records import StepFacts, UpdateFacts
from powermean.contracts.trajectories import TrajectoryBatch
from trainer import checkpoint, probe
from trainer.batching import Rollouts, minibatches
from trainer.dynamic_sampling import GradedRollouts, SamplingFacts, sample_step
from trainer.evaluation import evaluate
from trainer.failures import TrainingError
from trainer.objectives import sampling_kl
from trainer.parts import Run, Stopwatch
from trainer.recording import (
    StepReport,
    UpdateReport,
    metric,
    step_metrics,
    text_segment,
    time_metrics,
    token_segment,
    trajectory_rows,
)
from trainer.sampling import PUBLISH_TIMEOUT_S, Completes, sample, texts
from trainer.sampling_ahead import Batches, SamplingAhead, SamplingInTurn
from trainer.seeds import derive_seed, generator
from trainer.token_recording import recorded_rows
from trainer.update import TrainingBatch

BeginRound = Callable[[int, int], None]  # step, round: raises when it is not to be sampled


class Cancelled(Exception):  # noqa: N818 (an order obeyed, not an error)
    """The supervisor ordered the attempt to stop without saving."""


@dataclass(frozen=True)
class SampledBatch:
    """A step's rollout batch, and what making it took."""

    graded: GradedRollouts
    facts: SamplingFacts
    seconds: Mapping[str, float]  # by phase


def train(run: Run) -> Literal["finished", "checkpointed"]:
    """Train from `run.progress` to the last step. `checkpointed`: stopped on order, to go on elsewhere.

    Raises Cancelled, and TrainingError for what went wrong; a run without one optimiser step has gone wrong.
    """
    last = run.spec.training.steps
    if run.progress.step == 0:
        evaluate_now(run)
    else:
        publish(run, run.encode(run.source.batch(run.progress.step, probe.PROBE_PROMPTS, run.spec.seed)))
    with sampled_batches(run) as batches:
        for step in range(run.progress.step + 1, last + 1):
            watch = Stopwatch()
            rollouts = train_step(run, batches, step, watch)
            every = run.spec.evaluation.every
            if step == last or (every and step % every == 0):
                evaluate_now(run)
            leave = run.reporter.order() == "checkpoint_and_exit" and step < last
            if leave or (step % run.spec.checkpoints.every == 0 and step < last):
                with watch("checkpoint"):
                    commit = save_checkpoint(run, rollouts)
                run.reporter.metrics([metric(step, "time/checkpoint", watch.seconds["checkpoint"])])
                # Last: a new attempt goes on after it, so all before is complete.
                run.reporter.checkpoint(commit)
            if leave:
                return "checkpointed"
    if run.progress.updates == 0:
        raise no_updates(last)
    return "finished"


def no_updates(steps: int) -> TrainingError:
    """The error of a run that ends with the weights it started from."""
    return TrainingError(
        "no_updates",
        f"not one optimiser step was taken in {steps} steps: in every group all rewards were the same",
        path="data",
        remedy="choose problems that the model solves sometimes (the metric `reward` says how often it did), "
        "or raise rollout.group_size",
    )


def sampled_batches(run: Run) -> Batches[SampledBatch]:
    """The rollout batches of the steps to come, sampled when they are needed or ahead of that."""
    steps = range(run.progress.step + 1, run.spec.training.steps + 1)
    staleness = run.spec.rollout.max_staleness

    def begin(step: int, number: int) -> None:
        obey(run)
        if number:
            run.reporter.phase(f"step {step} of {steps.stop - 1}: sampling (round {number + 1})")

    def while_waiting() -> None:
        obey(run)
        run.engine.restore()

    if staleness == 0:
        return SamplingInTurn(lambda step: sample_batch(run, run.engine, step, begin))
    beside = run.engine.beside()
    return SamplingAhead(
        lambda step, go_on: sample_batch(run, beside, step, lambda _step, _number: go_on()),
        steps,
        staleness,
        while_waiting=while_waiting,
        break_off=run.engine.close,
    )


def train_step(run: Run, batches: Batches[SampledBatch], step: int, watch: Stopwatch) -> Rollouts:
    """One rollout batch and all that is made of it."""
    learner, ready = run.learner, batches.ready
    run.reporter.phase(f"step {step} of {run.spec.training.steps}: sampling")
    with watch("wait"):
        sampled = batches.take(step)
    graded, facts = sampled.graded, sampled.facts
    batch = start_batch(run, step, graded)
    reports = update_policy(run, batch, watch)
    with watch("publish"):
        run.progress = run.progress.advanced(
            step=step, updates=learner.updates, tokens=run.progress.tokens + facts.tokens
        )
        run.reporter.phase(f"step {step} of {run.spec.training.steps}: publishing weights")
        difference = publish(run, graded.rollouts.prompts)
    batches.published(step)
    with watch("record"):
        report = step_report(run, batch, graded, facts, reports, difference)
        record(run, report, batch.recorded)
    times = time_metrics(step, {**sampled.seconds, **watch.stop()}, facts.tokens)
    run.reporter.metrics([*times, metric(step, "sampling/queued", ready)])
    return graded.rollouts


def sample_batch(run: Run, engine: Completes, step: int, begin: BeginRound) -> SampledBatch:
    """The step's completions, graded."""
    watch, algorithm = Stopwatch(), run.learner.algorithm
    graded, facts = sample_step(
        lambda number: sample_round(run, engine, step, number, watch, begin),
        algorithm,
        run.learner.pad_token_id,
    )
    return SampledBatch(graded, facts, watch.seconds)


def sample_round(
    run: Run, engine: Completes, step: int, number: int, watch: Stopwatch, begin: BeginRound
) -> GradedRollouts:
    """Completions of a round of the step's prompts, graded. Every algorithm has round 0."""
    spec = run.spec
    begin(step, number)
    problems = run.source.batch(step, spec.training.prompts_per_step, spec.seed, number)
    place = (step, number) if number else (step,)
    with watch("generate"):
        rollouts = sample(
            engine,
            run.encode(problems),
            count=spec.rollout.group_size,
            sampling=run.sampling(derive_seed(spec.seed, "rollout", *place)),
            pad_token_id=run.learner.pad_token_id,
        )
    with watch("grade"):
        completions = texts(rollouts, run.decode)
        answers = [problem.answer for problem in problems for _ in range(rollouts.group_size)]
        grades = run.grader.grade(list(zip(completions, answers, strict=True)))
    return GradedRollouts(tuple(problems), rollouts, tuple(completions), tuple(grades))


def start_batch(run: Run, step: int, graded: GradedRollouts) -> TrainingBatch:
    """Rewards, advantages, and the groups that the algorithm keeps."""
    algorithm, limit = run.learner.algorithm, run.spec.rollout.max_new_tokens
    rollouts, rewards = graded.rollouts, graded.rewards
    shaped = algorithm.shape_rewards(rewards, rollouts.lengths, limit)
    return TrainingBatch.start(
        step,
        rollouts,
        advantages=algorithm.advantages(shaped, rollouts.group),
        kept=algorithm.keep(rewards, rollouts.group),
        rewards=rewards,
        progress=(step - 1) / max(1, run.spec.training.steps - 1),
        max_new_tokens=limit,
        recorded=recorded_rows(run.spec.record.tokens, len(rollouts.prompts), rollouts.group_size),
    )


def update_policy(run: Run, batch: TrainingBatch, watch: Stopwatch) -> list[UpdateReport]:
    """Epochs over the rollout batch, an optimiser step per minibatch."""
    training, learner, reports = run.spec.training, run.learner, list[UpdateReport]()
    dealt = [
        minibatches(
            training.prompts_per_step,
            training.minibatches,
            generator(run.spec.seed, "minibatch", batch.step, epoch),
        )
        for epoch in range(training.epochs)
    ]
    run.reporter.phase(f"step {batch.step} of {training.steps}: scoring")
    with watch("score"):
        first = next((groups for groups in dealt[0] if learner.active(batch, groups)), None)
        for groups in dealt[0]:
            if groups is not first or not learner.first_pass_scores:
                learner.score(batch, groups)
            learner.score_reference(batch, groups)
    run.reporter.phase(f"step {batch.step} of {training.steps}: updating")
    with watch("update"):
        for groups in (groups for epoch in dealt for groups in epoch):
            reports.append(learner.update(batch, groups, len(reports)))
            obey(run)
    return reports


def publish(run: Run, prompts: Sequence[tuple[int, ...]]) -> float:
    """Send the weights to the rollout service and compare log-probs: the largest difference in nats."""
    version, policy = run.progress.step, run.learner.policy
    try:
        request = run.weights.write(policy.model, version)
        run.engine.publish(request, PUBLISH_TIMEOUT_S)
    finally:
        run.weights.discard(version)
    sampling = run.sampling(derive_seed(run.spec.seed, "probe", version))
    difference = probe.probe(run.engine, policy, prompts, sampling, run.learner.pad_token_id)
    probe.check(difference, run.spec.rollout.logprob_tolerance, policy.dtype, version)
    return difference


def step_report(
    run: Run,
    batch: TrainingBatch,
    graded: GradedRollouts,
    facts: SamplingFacts,
    reports: Sequence[UpdateReport],
    difference: float,
) -> StepReport:
    """Bring together what is recorded of a step."""
    rollouts = graded.rollouts
    scored = batch.rollouts.mask & ~batch.old_log_probs.isnan()
    shaped = run.learner.algorithm.shape_rewards(graded.rewards, rollouts.lengths, batch.max_new_tokens)
    gap = torch.where(scored, batch.old_log_probs - rollouts.sampler_log_probs, 0.0).abs()
    return StepReport(
        step=batch.step,
        rollouts=rollouts,
        sampling=facts,
        problems=graded.problems,
        texts=graded.texts,
        grades=graded.grades,
        advantages=batch.advantages,
        usable=batch.usable,
        entropy=batch.entropy,
        sampling_kl=sampling_kl(batch.old_log_probs, rollouts.sampler_log_probs, scored),
        logp_difference=float(gap.max()) if scored.any() else None,
        updates=reports,
        tokens_so_far=run.progress.tokens,
        publish_difference=difference,
        penalties=shaped - graded.rewards,
        old_log_probs=batch.old_log_probs,
        facts=step_facts(batch, reports, run.spec.training.minibatches),
    )


def step_facts(batch: TrainingBatch, reports: Sequence[UpdateReport], minibatches: int) -> StepFacts:
    """What the objectives of the step's updates shared."""
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


def record(run: Run, report: StepReport, count: int) -> None:
    """Spool metrics and trajectories; texts, and tokens of the first `count`, go to the artefact store."""
    texts_at = tokens_at = None
    name = f"{report.step:08d}.jsonl.gz"
    if run.spec.record.texts:
        texts_at = run.store.put_bytes(f"jobs/{run.job_id}/texts/{run.attempt}", name, text_segment(report))
    if count:
        segment = token_segment(report, count, run.decode)
        tokens_at = run.store.put_bytes(f"jobs/{run.job_id}/tokens/{run.attempt}", name, segment)
    run.reporter.metrics(step_metrics(report))
    run.reporter.trajectories(
        TrajectoryBatch(
            step=report.step,
            rows=tuple(trajectory_rows(report)),
            texts=texts_at,
            tokens=tokens_at,
            token_rows=count,
        )
    )


def evaluate_now(run: Run) -> None:
    """Held-out reward under the present weights."""
    step = run.progress.step
    run.reporter.phase(f"step {step} of {run.spec.training.steps}: evaluating")
    started = time.perf_counter()
    problems = run.source.held_out(run.spec.evaluation.problems)
    reward = evaluate(run.engine, run.grader, problems, run.encode(problems), run.decode, run.spec)
    before = reward if step == 0 else run.progress.reward_before
    run.progress = run.progress.advanced(reward_before=before, reward_after=reward)
    seconds = time.perf_counter() - started
    run.reporter.metrics([metric(step, "eval/reward", reward), metric(step, "eval/seconds", seconds)])


def save_checkpoint(run: Run, rollouts: Rollouts) -> CheckpointCommit:
    """Store the run's state: once it is committed, a new attempt goes on after this step."""
    step = run.progress.step
    run.reporter.phase(f"step {step} of {run.spec.training.steps}: saving a checkpoint")
    folder = run.scratch / f"checkpoint-{step}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    checkpoint.save(folder, run.learner.policy.model, run.learner.optimizer, run.progress, rollouts)
    owner = f"jobs/{run.job_id}/checkpoints/{run.attempt}-{step}"
    manifest = checkpoint.store_folder(run.store, owner, folder)
    shutil.rmtree(folder, ignore_errors=True)
    return CheckpointCommit(step=step, manifest=manifest)


def obey(run: Run) -> None:
    """Raises Cancelled on that order. Checkpoint and exit waits for the end of the step."""
    if run.reporter.order() == "cancel":
        raise Cancelled
