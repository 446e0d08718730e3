"""Our side of round.py: a whole round of the main job, and updates alone."""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection

from gpu_bench import rollouts, start
from rollouts_service import JOB, Service, serving
from round_processes import Turn, asked
from round_work import UPDATE_GROUPS, Work, worked_on

from powermean.contracts.attempts import Claim, EngineStart
from powermean.contracts.job import JobSpec
from powermean.processes import descendants
from trainer.engine_connection import connected
from trainer.forks.start import Start
from trainer.learner_setup import make_learner
from trainer.loop import StepBatch, publish, sample_and_grade, train_step
from trainer.rollouts.sampling_ahead import SamplingInTurn
from trainer.run import seed_all, use_threads, wired
from trainer.run_context import Run, Stopwatch
from worker.attempt_dir import AttemptDir
from worker.reporter import Reporter
from worker.settings import NodeSettings


def rounds(pipe: Connection, work: Work) -> None:
    """Steps of the real loop, with the rollout service that a node starts; weights are shared in place."""
    use_threads(1)
    seed_all(work.spec.seed)
    with serving("transformers", work.folder) as service, running(work, service) as run:
        sampled: list[StepBatch] = []

        def sample(step: int) -> StepBatch:
            sampled.append(sample_and_grade(run, run.engine, step, lambda _step, _number: None))
            return sampled[-1]

        publish(run, run.encode(run.source.batch(0, 1, run.spec.seed)))
        with SamplingInTurn(sample) as batches:

            def turn() -> dict[str, float]:
                step, watch = run.progress.step + 1, Stopwatch()
                train_step(run, batches, step, watch)
                (batch,) = sampled
                sampled.clear()
                found = batch.graded.rollouts
                rows = found.trajectories(range(len(found.tokens)))
                parts = {f"{name} s": value for name, value in (batch.seconds | watch.seconds).items()}
                del parts["wait s"]  # it is sampling and grading
                return worked_on(rows.prompts, rows.completions) | parts

            take_turns(pipe, turn, service.cpu_seconds, (service.pid, *descendants(service.pid)))


@contextmanager
def running(work: Work, service: Service) -> Iterator[Run]:
    """The run of an attempt at the job, as the trainer wires it."""
    claim = Claim(
        attempt_id=f"{JOB}.1",
        job_id=JOB,
        number=1,
        spec=work.spec,
        allocations=(),
        token=service.token,
        lease_s=86_400,
        beat_s=86_400,
    )
    settings = NodeSettings(
        artefacts_url=service.store.url, data_dir=work.models.data_dir, model_roots=(work.models.scratch,)
    )
    attempt = AttemptDir.create(service.folder / claim.attempt_id, claim)
    attempt.write_engine_start(EngineStart(url=service.url))
    reporter = Reporter(attempt.path)
    with wired(attempt, claim, settings, reporter, partial(connected, tell=reporter.phase)) as run:
        yield run


def updates(pipe: Connection, work: Work, prompt: int, completion: int) -> None:
    """Updates on random completions, a group in each micro-batch."""
    use_threads(1)
    seed_all(0)
    learner = make_learner(
        Start(work.folder, work.folder.name), one_group_at_a_time(work.spec, prompt, completion), 0
    )
    given = rollouts(learner.policy.plain_model.config.vocab_size, prompt, completion, groups=UPDATE_GROUPS)
    batch = start(learner, given)
    learner.update(batch, range(UPDATE_GROUPS), 0)  # takes pi_old, which TRL also takes before its first

    def turn() -> dict[str, float]:
        learner.update(batch, range(UPDATE_GROUPS), 1)
        return {}

    take_turns(pipe, turn, time.process_time, ())


def one_group_at_a_time(spec: JobSpec, prompt: int, completion: int) -> JobSpec:
    """The job with micro-batches of one group."""
    tokens = prompt + spec.rollout.group_size * completion
    changes = {"training": {"micro_batch_tokens": tokens}, "rollout": {"max_new_tokens": completion}}
    whole = spec.model_dump(mode="json")
    return JobSpec.model_validate(whole | {part: whole[part] | change for part, change in changes.items()})


def take_turns(
    pipe: Connection,
    turn: Callable[[], dict[str, float]],
    cpu_seconds: Callable[[], float],
    engine: Iterable[int],
) -> None:
    """One turn to warm up, then as many as are asked for."""
    turn()
    pipe.send((os.getpid(), *engine))
    while asked(pipe):
        began, cpu = time.perf_counter(), cpu_seconds()
        facts = turn()
        pipe.send(Turn(time.perf_counter() - began, cpu_seconds() - cpu, facts))
