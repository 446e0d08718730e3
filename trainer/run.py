"""A training process of an attempt: python -m trainer.run --attempt-dir DIR

Wires the loop from the claim and runs it. However it ends, the last record of the spool says how; the exit
status is 1 for a failure. By torchrun's environment variables it is one of several ranks (docs/ranks.md): the
first is the one that runs the loop and writes the spool, the others follow it.
"""

import argparse
import logging
import os
import random
import shutil
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from peft import PeftModel
from torch.distributed.device_mesh import DeviceMesh
from torch.utils import deterministic
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import Claim, Finish, JobResult
from powermean.contracts.job import JobSpec
from powermean.contracts.phases import LOADING_MODEL, SAVING_MODEL, WAITING_FOR_ENGINE
from powermean.end_tokens import end_tokens
from trainer import taking_part
from trainer.data import open_source
from trainer.data.encoding import PromptEncoder
from trainer.data.jsonl import Jsonl
from trainer.defaults import compiles
from trainer.engine_connection import Connection, connected, own_engine_urls, publisher
from trainer.failures import CancelledError, TrainingError, failed
from trainer.forks.start import Start, start_of
from trainer.learner import checkpoint
from trainer.learner.final_model import save_model, try_saving
from trainer.learner.leading import Following
from trainer.learner.learner import Learner
from trainer.learner.loading_sharded import load_sharded_policy
from trainer.learner.lora import attach
from trainer.learner.optimizer import MasterWeights, UpdatePlan, make_optimizer
from trainer.learner.tokenizing import decode, load_tokenizer, pad_token_id, prompt_encoder
from trainer.learner.trial import micro_batch_tokens
from trainer.loop import train
from trainer.objectives import build_algorithm
from trainer.policy.length_probe import refuse_length_dependence
from trainer.policy.loading import Compile, empty_model, load_policy, resolve_device, resolve_dtype
from trainer.policy.policy import Policy
from trainer.ranks.agreement import refuse_different_weights
from trainer.ranks.exchange import Ranks, follow
from trainer.ranks.meeting import joined
from trainer.ranks.sharding import held_bytes, layout, make_mesh
from trainer.ranks.world import World
from trainer.rewards.isolation import open_grader
from trainer.rollouts.sampling import sharing_limit
from trainer.run_context import Run
from trainer.screening import Shelf, judge, left_out, lines, measure, named
from trainer.seeds import derive_seed
from trainer.weights.files import remove_stale
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
            reporter.phase(f"waiting for {world.size - 1} other ranks")
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
    remove_stale(claim.job_id)
    reporter.phase(LOADING_MODEL)
    start = start_of(claim, store, settings, attempt.start)
    folder = start.folder
    tokenizer = load_tokenizer(folder)
    encode = prompt_encoder(tokenizer)
    learner, progress = resumed_learner(attempt, claim, settings, start, ranks, reporter.phase)
    learner.tell = lambda number, of: reporter.detail(f"micro-batch {number} of {of}")
    scratch = attempt.path / "scratch"
    try_saving(learner.policy, folder, fresh(scratch / "model"))
    dataset = store.local_copy(claim.dataset, scratch / "dataset.jsonl") if claim.dataset else None
    source, share_left_out = open_source(spec.data, dataset), 0.0
    prompts = encode(source.batch(1, spec.training.prompts_per_step, spec.seed))
    refuse_length_dependence(taking_part.led(learner), max(map(len, prompts)) + spec.rollout.max_new_tokens)

    def call(adapter_alone: bool) -> None:
        taking_part.call_to_gather(learner, adapter_alone=adapter_alone)

    def save(target: Path) -> None:
        taking_part.call_to_save(learner)
        save_model(learner.policy, folder, target)

    reporter.phase(WAITING_FOR_ENGINE)
    with (
        open_grader(spec.reward) as grader,
        connect(attempt) as connection,
        closing(
            publisher(connection, claim, learner.policy, store, scratch, partial(call, connection.adapters))
        ) as weights,
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
            engine=SteadyEngine(
                connection.engine,
                weights,
                learner.policy.model,
                reporter.phase,
                sharing_limit(spec, connection.other_jobs),
                comes_back=connection.shared or connection.engine.size > 1,
            ),
            weights=weights,
            reporter=reporter,
            store=store,
            scratch=scratch,
            encode=encode,
            decode=lambda ids: decode(tokenizer, ids),
            end_tokens=end_tokens(folder),
            save_model=save,
            progress=progress,
        )


def resumed_learner(
    attempt: AttemptDir,
    claim: Claim,
    settings: NodeSettings,
    start: Start,
    ranks: Ranks,
    tell: Callable[[str], None] = log.info,
) -> tuple[Learner, checkpoint.Progress]:
    """This rank's learner, as the last checkpoint left it. A node's first rank fetches that for all there."""
    spec, world, scratch = claim.spec, ranks.world, attempt.path / "scratch"
    if world.local_rank == 0:
        fresh(scratch)
    if spec.resources.gpus and spec.resources.placement == "colocated":
        # While vLLM measures how much of the GPU is left for its cache, it counts others' memory as its own.
        own_engine_urls(attempt, claim, tell)
    tell(LOADING_MODEL)
    learner = make_learner(start, spec, pad_token_id(load_tokenizer(start.folder)), ranks)
    refuse_different_weights(ranks, learner.policy.model)
    if not world.leads:  # up to here all drew the same: a new adapter is the same everywhere
        step = 0 if claim.resume is None else claim.resume.step
        torch.manual_seed(derive_seed(spec.seed, "rank", world.rank, step))
    progress = checkpoint.Progress()
    if claim.resume is not None:
        tell(f"loading the checkpoint of step {claim.resume.step}")
        if world.local_rank == 0:
            store = ArtefactStore(settings.artefacts_url, existing=True)
            checkpoint.fetch_folder(store, claim.resume.manifest, scratch / "resume")
        ranks.wait_for_all()
        progress = checkpoint.load(
            scratch / "resume", learner.policy.model, learner.optimizer, learner.master_weights, world
        )
        learner.updates = progress.updates
        if progress.beta is not None:
            learner.beta = progress.beta
        ranks.wait_for_all()
        if world.local_rank == 0:
            shutil.rmtree(scratch / "resume")
    return learner, progress


def usable(
    source: Jsonl,
    spec: JobSpec,
    folder: Path,
    encode: PromptEncoder,
    shelf: Shelf,
    max_model_len: int | None,
) -> tuple[Jsonl, float]:
    """The dataset without the rows that the engine can't take or no completion can match, and their share.

    Most were found before the job was queued; an engine with less room, or another node, finds them here.
    """
    prompts = shelf.prompts(spec.data, folder, lambda: measure(source.to_check(), encode))
    answers = shelf.answers(spec.data, spec.reward, lambda: judge(source.to_check(), spec.reward))
    most = None if max_model_len is None else max_model_len - spec.rollout.max_new_tokens
    without = left_out(prompts, answers, most)
    if prompts.spelled_out.any():
        spelled_out = named(lines(prompts.spelled_out))
        log.warning("%s: control tokens in a field are read as text (data.control_tokens)", spelled_out)
    if answers.unjudged:
        log.warning("time was up before %d answers were tried on the grader", answers.unjudged)
    if not without.lines:
        return source, 0.0
    log.warning("%s", without)
    return source.without(without.lines), len(without.lines) / len(prompts.tokens)


def make_learner(
    start: Start,
    spec: JobSpec,
    pad: int,
    ranks: Ranks = Ranks(),
) -> Learner:
    """The policy, its optimiser, and the frozen initial model if the objective has a KL term."""
    device = resolve_device(spec.model.device, spec.resources.gpus, ranks.world.local_rank)
    mesh, leads = mesh_of(spec, start.folder, ranks.world, device), ranks.world.leads

    def load(compiled: Compile, *, trained: bool) -> Policy:
        how: dict[str, Any] = {
            "device": device,
            "dtype": resolve_dtype(spec.model.dtype, device),
            "temperature": spec.rollout.temperature,
            "gradient_checkpointing": trained and spec.training.gradient_checkpointing,
            "compiled": compiled,
        }
        prepare = partial(prepared, spec=spec, start=start, trained=trained)
        if mesh is not None:
            prepare = partial(prepare, empty=not leads)
            return load_sharded_policy(start.folder, mesh, leads=leads, prepare=prepare, **how)
        policy = load_policy(start.folder, **how)
        return replace(policy, model=prepare(policy.plain_model))

    compiled: Compile = "off"
    if compiles(spec.training, cuda=device.type == "cuda"):
        compiled = "on" if spec.training.compile == "on" else "try"
    policy = load(compiled, trained=True)
    masters = None
    if spec.training.weights == "bfloat16" and mesh is None:  # those of a sharded model are its float32 rows
        masters = MasterWeights(policy.model)
    optimizer = make_optimizer(policy.model, spec.optimizer, masters)
    reference = load(compiled, trained=False) if spec.algorithm.beta > 0 else None
    tokens = spec.training.micro_batch_tokens
    return Learner(
        policy=policy,
        reference=reference,
        algorithm=build_algorithm(spec.algorithm),
        spec=spec.optimizer,
        optimizer=optimizer,
        plan=UpdatePlan(spec.training.steps, spec.training.updates_per_step),
        micro_batch_tokens=ranks.least(
            micro_batch_tokens(policy, optimizer, spec.optimizer.state) if tokens == "auto" else tokens
        ),
        may_lower=tokens == "auto",
        micro_batch_groups=spec.training.micro_batch_groups,
        masters=masters,
        pad_token_id=pad,
        ranks=ranks,
    )


def prepared(
    model: PreTrainedModel, spec: JobSpec, start: Start, *, trained: bool, empty: bool = False
) -> PreTrainedModel | PeftModel:
    """The model with a new adapter, or with the one that the job goes on with; the initial one has it merged.

    `empty`: another rank will send the weights.
    """
    lora = spec.model.lora
    if lora is None or not (trained or (start.adapter is not None and not empty)):
        return model
    adapted = attach(model, lora, start.name)
    if start.adapter is not None and not empty:
        checkpoint.load_weights(start.adapter, adapted)
    if trained:
        return adapted
    merged: PreTrainedModel = adapted.merge_and_unload()
    merged.requires_grad_(True)  # as of a model that never had one
    return merged


def mesh_of(spec: JobSpec, folder: Path, world: World, device: torch.device) -> DeviceMesh | None:
    """The ranks over which the model is sharded; None where each has all of it."""
    if world.alone:
        return None
    model = empty_model(folder)
    numbers = sum(weight.numel() for weight in model.parameters())
    with torch.random.fork_rng(devices=()):  # an adapter's first weights are the same as alone
        changed = model if spec.model.lora is None else attach(model, spec.model.lora, "")
    trained = sum(weight.numel() for weight in changed.parameters() if weight.requires_grad)
    needed = held_bytes(numbers, trained, reference=spec.algorithm.beta > 0)
    how = layout(spec.training.parallel, world, needed, free_bytes(world, device))
    log.info("the model is held by %d ranks: %s", world.size, how)
    return None if how == "replicate" else make_mesh(world, how, device)


def free_bytes(world: World, device: torch.device) -> int:
    """Of memory, for this rank."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // world.local_size


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


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


if __name__ == "__main__":
    sys.exit(main())
