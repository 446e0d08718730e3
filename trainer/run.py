"""A training process of an attempt: python -m trainer.run --attempt-dir DIR

Wires the loop from the claim and runs it. However it ends, the last record of the spool says how; the exit
status is 1 for a failure. By torchrun's environment variables it is one of several ranks (docs/ranks.md): the
first is the one that runs the loop and writes the spool, the others follow it.
"""

import argparse
import logging
import os
import random
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn

from powermean.importing import uncollected

with uncollected():
    import numpy as np
    import torch
    from torch.utils import deterministic
    from transformers.utils.logging import disable_progress_bar

    from powermean.artefacts import ArtefactStore
    from powermean.contracts.attempts import Claim, Finish, JobResult
    from powermean.contracts.job import JobSpec
    from powermean.contracts.phases import LOADING_MODEL, SAVING_MODEL, WAITING_FOR_ENGINE
    from powermean.end_tokens import end_tokens
    from trainer import taking_part
    from trainer.data import PromptSource, open_source
    from trainer.data.jsonl import Jsonl
    from trainer.engine_connection import Connection, connected, publisher
    from trainer.failures import CancelledError, TrainingError, failed
    from trainer.forks.start import start_of
    from trainer.learner import checkpoint
    from trainer.learner.final_model import save_model, try_saving
    from trainer.learner.leading import Following
    from trainer.learner.learner import Learner
    from trainer.learner.tokenizing import decode, load_tokenizer, prompt_encoder
    from trainer.learner_setup import fresh, resumed_learner
    from trainer.loop import train
    from trainer.policy.length_probe import refuse_length_dependence
    from trainer.ranks.exchange import Ranks, follow
    from trainer.ranks.meeting import joined
    from trainer.ranks.world import World
    from trainer.rewards.isolation import open_grader
    from trainer.rollouts.sampling import sharing_limit
    from trainer.run_context import Run
    from trainer.screening import Shelf, usable
    from trainer.weights.files import Publisher, remove_stale
    from trainer.weights.steady_engine import SteadyEngine
    from worker.attempt_dir import AttemptDir
    from worker.reporter import Reporter, tell_rank_end
    from worker.settings import NodeSettings, NodeSettingsError


log = logging.getLogger(__name__)


def main() -> int:
    """Run the attempt in --attempt-dir."""
    parser = argparse.ArgumentParser(prog="python -m trainer.run", description=main.__doc__)
    parser.add_argument("--attempt-dir", type=Path, required=True)
    folder = parser.parse_args().attempt_dir
    try:
        settings = NodeSettings.read()
    except NodeSettingsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers draws them over the lines of a log
    world = World.of_environment()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s trainer: %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if world.leads:
        reporter = Reporter(folder)
        connect = partial(connected, tell=reporter.phase)
        finish = run_attempt(AttemptDir(folder), settings, reporter, connect, world)
        reporter.finish(finish)
        well = finish.outcome != "failed"
    else:
        well = follow_attempt(AttemptDir(folder), settings, world)
    if not (well or world.alone):
        leave_at_once()
    return 0 if well else 1


def leave_at_once() -> NoReturn:
    """End a rank as failed without waiting for calls among the ranks that will never return."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


Connect = Callable[[AttemptDir], AbstractContextManager[Connection]]


def run_attempt(
    attempt: AttemptDir,
    settings: NodeSettings,
    reporter: Reporter,
    connect: Connect,
    world: World = World(),
) -> Finish:
    """Train, and report how it ended. This is the boundary where every failure becomes a typed error."""

    def give_up(error: TrainingError) -> NoReturn:
        reporter.finish(failed(error))
        leave_at_once()

    try:
        claim = attempt.claim()
        use_threads(settings.cpu_slots * world.local_size)
        seed_all(claim.spec.seed)
        if not world.alone:
            others = world.size - 1
            reporter.phase(f"waiting for {others} other rank{'s' if others > 1 else ''}")
        with (
            joined(world, give_up, cuda=claim.spec.resources.gpus > 0) as ranks,
            wired(attempt, claim, settings, reporter, connect, ranks) as run,
        ):
            end = train(run)
            if end.outcome == "checkpointed":
                return Finish(outcome="checkpointed")
            reporter.phase(SAVING_MODEL)
            return Finish(outcome="finished", result=result(run), ended_by=end.ended_by)
    except CancelledError:
        return Finish(outcome="cancelled")
    except Exception as error:  # noqa: BLE001 (recorded as the attempt's end)
        with suppress(OSError):  # the log's disk may be what is full
            traceback.print_exc()
        return failed(error)


def follow_attempt(attempt: AttemptDir, settings: NodeSettings, world: World) -> bool:
    """Be one of the other ranks: do what rank 0 says. Whether it ended well; rank 0 reports why not."""

    def give_up(error: TrainingError) -> NoReturn:
        log.error("%s", error)
        tell_rank_end(attempt, world.rank, failed(error))
        leave_at_once()

    try:
        claim = attempt.claim()
        use_threads(settings.cpu_slots * world.local_size)
        seed_all(claim.spec.seed)
        with joined(world, give_up, cuda=claim.spec.resources.gpus > 0) as ranks:
            store = ArtefactStore(settings.artefacts_url, existing=True)
            start = start_of(claim, store, settings, attempt.start)
            learner, _ = resumed_learner(attempt, claim, settings, start, ranks)
            theirs = taking_part.duties(learner, store, attempt.path / "scratch")
            follow(ranks, {**Following(learner).duties, **theirs})
    except Exception as error:  # noqa: BLE001 (told to the other ranks, and to this node)
        with suppress(OSError):
            traceback.print_exc()
        tell_rank_end(attempt, world.rank, failed(error))
        return False
    return True


def use_threads(shares: int) -> None:
    """This process's share of the node's cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, shares)))


def seed_all(seed: int) -> None:
    """Seed every generator with the job's seed, and use deterministic kernels where they exist."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only costs time: nothing reads such memory


@contextmanager
def wired(
    attempt: AttemptDir,
    claim: Claim,
    settings: NodeSettings,
    reporter: Reporter,
    connect: Connect,
    ranks: Ranks = Ranks(),
) -> Iterator[Run]:
    """The run of a claim, resumed from its last checkpoint."""
    spec, store = claim.spec, ArtefactStore(settings.artefacts_url, existing=True)
    scratch = attempt.path / "scratch"
    remove_stale(claim.job_id)
    reporter.phase(LOADING_MODEL)
    start = start_of(claim, store, settings, attempt.start)
    folder = start.folder
    tokenizer = load_tokenizer(folder)
    encode = prompt_encoder(tokenizer)
    learner, progress = resumed_learner(attempt, claim, settings, start, ranks, reporter.phase)
    learner.tell = lambda number, of: reporter.detail(f"micro-batch {number} of {of}")
    try_saving(learner.policy, folder, fresh(scratch / "model"))
    source, share_left_out = opened(claim, store, scratch), 0.0
    prompts = encode(source.batch(1, spec.training.prompts_per_step, spec.seed))
    refuse_length_dependence(taking_part.led(learner), max(map(len, prompts)) + spec.rollout.max_new_tokens)
    reporter.phase(WAITING_FOR_ENGINE)
    with (
        open_grader(spec.reward) as grader,
        connect(attempt) as connection,
        published(connection, claim, learner, store, scratch) as weights,
    ):
        if isinstance(source, Jsonl) and claim.dataset is not None:
            shelf = Shelf(settings.data_dir, claim.dataset.sha256)
            reporter.phase("checking the dataset's rows")
            source, share_left_out = usable(source, spec, folder, encode, shelf, connection.max_model_len)
        yield Run(
            job_id=claim.job_id,
            attempt=claim.number,
            spec=spec,
            learner=learner,
            source=source,
            share_left_out=share_left_out,
            grader=grader,
            engine=steady_engine(connection, spec, learner, weights, reporter),
            weights=weights,
            reporter=reporter,
            store=store,
            scratch=scratch,
            encode=encode,
            decode=lambda ids: decode(tokenizer, ids),
            end_tokens=end_tokens(folder),
            save_model=partial(save_whole_model, learner, folder),
            progress=progress,
        )


def opened(claim: Claim, store: ArtefactStore, scratch: Path) -> PromptSource:
    """The prompts, with the dataset brought here where there is one."""
    dataset = store.local_copy(claim.dataset, scratch / "dataset.jsonl") if claim.dataset else None
    return open_source(claim.spec.data, dataset)


def published(
    connection: Connection, claim: Claim, learner: Learner, store: ArtefactStore, scratch: Path
) -> AbstractContextManager[Publisher]:
    """How the engines get weights; the other ranks are told to take part."""
    call = partial(taking_part.call_to_gather, learner, adapter_alone=connection.adapters)
    return closing(publisher(connection, claim, learner.policy, store, scratch, call))


def steady_engine(
    connection: Connection, spec: JobSpec, learner: Learner, weights: Publisher, reporter: Reporter
) -> SteadyEngine:
    """The engines, as the loop has them: they get their weights again where they have lost them."""
    return SteadyEngine(
        connection.engine,
        weights,
        learner.policy.model,
        reporter.phase,
        sharing_limit(spec, connection.other_jobs),
        make_room=partial(taking_part.make_room, learner),
        comes_back=connection.shared or connection.engine.size > 1,
    )


def save_whole_model(learner: Learner, folder: Path, target: Path) -> None:
    """Write the final model, with the config and tokenizer of `folder`. Rank 0: the others take part."""
    taking_part.call_to_save(learner)
    save_model(learner.policy, folder, target)


def result(run: Run) -> JobResult:
    """Store the final model; returns the job's result."""
    folder = fresh(run.scratch / "model")
    run.save_model(folder)
    progress = run.progress
    return JobResult(
        steps=progress.step,
        reward_before=progress.reward_before,
        reward_after=progress.reward_after,
        tokens=progress.tokens,
        model=checkpoint.store_folder(run.store, f"jobs/{run.job_id}/model", folder),
    )


if __name__ == "__main__":
    sys.exit(main())
