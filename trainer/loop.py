"""Group-based reinforcement learning, step by step:

    sample -> grade -> advantage -> several optimiser steps -> publish -> record

Step 0 is the evaluation before training; step k leaves the weights of version k at the rollout service. With
rollout.max_staleness a thread meanwhile samples and grades the batches of coming steps (docs/overlap.md).
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from powermean.contracts.attempts import CheckpointCommit
from powermean.contracts.metrics import MetricRow
from powermean.contracts.phases import (
    CHECKPOINTING,
    EVALUATING,
    PUBLISHING,
    SAMPLING,
    SCORING,
    UPDATING,
    in_step,
)
from trainer.failures import CancelledError, no_updates
from trainer.learner import checkpoint
from trainer.learner.leading import Leading
from trainer.learner.training_batch import TrainingBatch
from trainer.learner.update_report import UpdateReport
from trainer.limits import judge
from trainer.recording.report import step_report
from trainer.recording.rows import metric, time_metrics
from trainer.recording.spool import record
from trainer.recording.tokens import recorded_rows
from trainer.rollouts.batching import minibatches
from trainer.rollouts.dynamic_sampling import GradedRollouts, SamplingFacts, fill_batch
from trainer.rollouts.evaluation import evaluate
from trainer.rollouts.sampling import PUBLISH_TIMEOUT_S, Completes, complete_prompts, graded_part, texts
from trainer.rollouts.sampling_ahead import Batches, SamplingAhead, SamplingInTurn
from trainer.run_context import Run, Stopwatch
from trainer.seeds import derive_seed, generator
from trainer.taking_part import call_to_checkpoint, led
from trainer.weights import probe
from trainer.weights.engine_pool import EnginePool

BeginRound = Callable[[int, int], None]  # step, round: raises if it must not be sampled


@dataclass(frozen=True)
class StepBatch:
    """A step's graded completions, and how long they took."""

    graded: GradedRollouts
    facts: SamplingFacts
    seconds: Mapping[str, float]  # by phase


@dataclass(frozen=True)
class TrainingEnd:
    """`checkpointed`: stopped as ordered, to resume elsewhere. `ended_by`: the limit that it has reached."""

    outcome: Literal["finished", "checkpointed"]
    ended_by: str | None = None


def train(run: Run) -> TrainingEnd:
    """Train from `run.progress` to the last step, or to where an order or a limit ends it.

    Raises CancelledError, and TrainingError for failures, including a run without a single optimiser step.
    """
    last, every, ended_by = run.spec.training.steps, run.spec.evaluation.every, None
    if run.reporter.order() == "checkpoint_and_exit":
        return TrainingEnd("checkpointed")  # where it began: nothing is new
    if run.progress.step > 0 or run.weights.from_the_start:
        publish(run, run.encode(run.source.batch(run.progress.step, probe.PROBE_PROMPTS, run.spec.seed)))
    if run.progress.step == 0:
        evaluate_now(run)
    elif run.reporter.order() == "finish":
        if not (every and run.progress.step % every == 0):
            evaluate_now(run)
        return finished(run)
    with step_batches(run) as batches:
        for step in range(run.progress.step + 1, last + 1):
            watch = Stopwatch()
            train_step(run, batches, step, watch)
            evaluated = step == last or bool(every and step % every == 0)
            if evaluated:
                evaluate_now(run)
            ended_by, order = judge_limits(run, step), run.reporter.order()
            if step == last or ended_by or order == "finish":
                if not evaluated:
                    evaluate_now(run)
                break
            leave = order == "checkpoint_and_exit"
            if leave or step % run.spec.checkpoints.every == 0:
                with watch("checkpoint"):
                    commit = save_checkpoint(run)
                run.report([metric(step, "time/checkpoint", watch.seconds["checkpoint"])])
                # Last, because a new attempt resumes after it: everything before must be complete.
                run.reporter.checkpoint(commit)
            if leave:
                return TrainingEnd("checkpointed")
    return finished(run, ended_by)


def finished(run: Run, ended_by: str | None = None) -> TrainingEnd:
    """The end of a run with a model. Raises TrainingError if it trained nothing."""
    if run.progress.updates == 0:
        raise no_updates(run.progress.step)
    return TrainingEnd("finished", ended_by if run.progress.step < run.spec.training.steps else None)


def judge_limits(run: Run, step: int) -> str | None:
    """The limit that the run has reached with this step, in words."""
    measured = {name: row.value for name, row in run.measured.items() if row.step == step}
    judged = judge(run.spec.limits, step, run.progress.tokens, run.progress.streak, measured)
    run.progress = run.progress.advanced(streak=judged.streak)
    return judged.reached


def train_step(run: Run, batches: Batches[StepBatch], step: int, watch: Stopwatch) -> None:
    """One rollout batch, from sampling to recording."""
    ready, moved = batches.ready, run.engine.engine.moved
    run.reporter.phase(in_step(step, run.spec.training.steps, SAMPLING))
    with watch("wait"):
        sampled = batches.take(step)
    graded, facts = sampled.graded, sampled.facts
    batch = with_advantages(run, step, graded)
    reports = update_policy(run, batch, watch)
    with watch("publish"):
        run.progress = run.progress.advanced(
            step=step,
            updates=run.learner.updates,
            tokens=run.progress.tokens + facts.tokens,
            beta=run.learner.beta,
        )
        run.reporter.phase(in_step(step, run.spec.training.steps, PUBLISHING))
        difference = publish(run, graded.rollouts.prompts)
    batches.published(step)
    with watch("record"):
        record(run, step_report(run, batch, graded, facts, reports, difference), batch.recorded)
    times = time_metrics(step, {**sampled.seconds, **watch.stop()}, facts.tokens)
    facts_of_run = [metric(step, "sampling/queued", ready), metric(step, "data/left_out", run.share_left_out)]
    run.report([*times, *facts_of_run, *engine_metrics(step, run.engine.engine, moved)])


def engine_metrics(step: int, engines: EnginePool, moved_before: int) -> list[MetricRow]:
    """How the replicas of the engine fare; nothing of a single one."""
    if engines.size == 1:
        return []
    moved = engines.moved - moved_before
    return [metric(step, "sampling/replicas", engines.serving), metric(step, "sampling/moved_prompts", moved)]


def step_batches(run: Run) -> Batches[StepBatch]:
    """The batches of the coming steps, sampled on demand or ahead of time."""
    steps = range(run.progress.step + 1, run.spec.training.steps + 1)
    staleness = run.spec.rollout.max_staleness

    def begin(step: int, number: int) -> None:
        obey(run)
        if number:
            run.reporter.phase(in_step(step, steps.stop - 1, SAMPLING, f"round {number + 1}"))

    def while_waiting() -> None:
        obey(run)
        run.engine.restore()

    if staleness == 0:
        return SamplingInTurn(lambda step: sample_and_grade(run, run.engine, step, begin))
    beside = run.engine.beside()
    return SamplingAhead(
        lambda step, go_on: sample_and_grade(run, beside, step, lambda _step, _number: go_on()),
        steps,
        staleness,
        while_waiting=while_waiting,
        break_off=run.engine.close,
    )


def sample_and_grade(run: Run, engine: Completes, step: int, begin: BeginRound) -> StepBatch:
    """The step's batch: graded completions from as many rounds of prompts as the algorithm needs."""
    spec, watch = run.spec, Stopwatch()

    def one_round(number: int) -> GradedRollouts:
        begin(step, number)
        problems = run.source.batch(step, spec.training.prompts_per_step, spec.seed, number)
        place = (step, number) if number else (step,)
        with watch("generate"):
            rollouts = complete_prompts(
                engine,
                run.encode(problems),
                count=spec.rollout.group_size,
                sampling=run.sampling(derive_seed(spec.seed, "rollout", *place)),
                pad_token_id=run.learner.pad_token_id,
            )
        with watch("grade"):
            completions = texts(rollouts, run.decode, run.end_tokens)
            graded = [graded_part(text, spec.rollout.stop) for text in completions]
            answers = [problem.answer for problem in problems for _ in range(rollouts.group_size)]
            grades = run.grader.grade(list(zip(graded, answers, strict=True)))
        return GradedRollouts(tuple(problems), rollouts, tuple(completions), tuple(grades))

    batch, facts = fill_batch(one_round, run.learner.algorithm, run.learner.pad_token_id)
    return StepBatch(batch, facts, watch.seconds)


def with_advantages(run: Run, step: int, graded: GradedRollouts) -> TrainingBatch:
    """Rewards, advantages, and the groups that the algorithm keeps."""
    algorithm, limit = run.learner.algorithm, run.spec.rollout.max_new_tokens
    rollouts, rewards = graded.rollouts, graded.rewards
    shaped = algorithm.shape_rewards(rewards, rollouts.lengths, limit)
    return TrainingBatch.start(
        step,
        rollouts,
        advantages=algorithm.advantages(shaped, rollouts.group),
        penalties=shaped - rewards,
        kept=algorithm.keep(rewards, rollouts.group),
        rewards=rewards,
        progress=(step - 1) / max(1, run.spec.training.steps - 1),
        max_new_tokens=limit,
        recorded=recorded_rows(run.spec.record.tokens, len(rollouts.prompts), rollouts.group_size),
        old_policy=run.spec.rollout.old_policy,
        device=run.learner.policy.device,
    )


def update_policy(run: Run, batch: TrainingBatch, watch: Stopwatch) -> list[UpdateReport]:
    """Epochs over the rollout batch, an optimiser step per minibatch."""
    training, learners, reports = run.spec.training, Leading(run.learner), list[UpdateReport]()
    dealt = [
        minibatches(
            training.prompts_per_step,
            training.minibatches,
            generator(run.spec.seed, "minibatch", batch.step, epoch),
        )
        for epoch in range(training.epochs)
    ]
    run.reporter.phase(in_step(batch.step, training.steps, SCORING))
    with watch("score"):
        learners.begin(batch)
        learners.score_start(batch, dealt[0])
    due = [groups for epoch in dealt for groups in epoch]
    with watch("update"):
        run.engine.hold(batch.step)
        for number, groups in enumerate(due, 1):
            run.reporter.phase(in_step(batch.step, training.steps, UPDATING, f"{number} of {len(due)}"))
            reports.append(learners.update(batch, groups, len(reports)))
            obey(run)
    return reports


def publish(run: Run, prompts: Sequence[tuple[int, ...]]) -> float:
    """Send the weights to the rollout service and compare log-probs: the largest difference in nats."""
    version, policy = run.progress.step, led(run.learner)
    try:
        request = run.weights.write(policy.model, version)
        run.engine.publish(request, PUBLISH_TIMEOUT_S)
    finally:
        run.weights.discard(version)
    sampling = run.sampling(derive_seed(run.spec.seed, "probe", version))
    difference = probe.probe(run.engine, policy, prompts, sampling, run.learner.pad_token_id)
    probe.check(difference, run.spec.rollout.logprob_tolerance, policy.dtype, version)
    return difference


def evaluate_now(run: Run) -> None:
    """Held-out reward under the present weights."""
    step = run.progress.step
    run.reporter.phase(in_step(step, run.spec.training.steps, EVALUATING))
    started = time.perf_counter()
    problems = run.source.held_out(run.spec.evaluation.problems)
    reward = evaluate(
        run.engine, run.grader, problems, run.encode(problems), run.decode, run.end_tokens, run.spec
    )
    before = reward if step == 0 else run.progress.reward_before
    run.progress = run.progress.advanced(reward_before=before, reward_after=reward)
    seconds = time.perf_counter() - started
    run.report([metric(step, "eval/reward", reward), metric(step, "eval/seconds", seconds)])


def save_checkpoint(run: Run) -> CheckpointCommit:
    """Store the run's state; once it is committed, a new attempt resumes after this step."""
    step, learner = run.progress.step, run.learner
    run.reporter.phase(in_step(step, run.spec.training.steps, CHECKPOINTING))
    owner = f"jobs/{run.job_id}/checkpoints/{run.attempt}-{step}"
    call_to_checkpoint(learner, owner, run.progress)
    manifest = checkpoint.store(
        run.store,
        owner,
        run.scratch,
        learner.policy.model,
        learner.optimizer,
        run.progress,
        learner.master_weights,
        learner.ranks,
    )
    return CheckpointCommit(step=step, manifest=manifest)


def obey(run: Run) -> None:
    """Raises CancelledError if that is the order. Checkpoint and exit waits for the end of the step."""
    if run.reporter.order() == "cancel":
        raise CancelledError
