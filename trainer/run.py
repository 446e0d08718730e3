"""The training process of an attempt: python -m trainer.run --attempt-dir DIR

Wires the loop from the claim and runs it. However it ends, the last record of the spool says how. Exit
status 0 says that such a record is there.
"""

import argparse
import logging
import os
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import torch
from peft import PeftModel
from torch.utils import deterministic

from powermean.artefacts import ArtefactError, ArtefactStore, ArtefactStoreUnavailable
from powermean.contracts.attempts import Claim, Finish, JobError, JobResult
from powermean.contracts.rollout import EngineState
from rollout.client import RolloutClient, RolloutError
from rollout.gloo import address_towards
from trainer import checkpoint
from trainer.attempt_dir import AttemptDir
from trainer.channel import ChannelWriter, connector
from trainer.data import open_source
from trainer.failures import TrainingError, is_disk_full, is_out_of_memory
from trainer.final_model import save_model
from trainer.loop import Cancelled, train
from trainer.lora import attach
from trainer.models import resolve_model
from trainer.objectives import build_algorithm
from trainer.parts import Run
from trainer.policy import Policy, load_policy, resolve_device, resolve_dtype
from trainer.publish import Publisher, WeightWriter, fits_shared_memory, remove_stale
from trainer.reporter import Reporter
from trainer.rewards import open_grader
from trainer.sampling import sharing_limit
from trainer.settings import NodeSettings, NodeSettingsError
from trainer.steady_engine import Service, SteadyEngine
from trainer.tokenizing import decode, encode_prompts, load_tokenizer, pad_token_id
from trainer.update import Learner, make_optimizer

ENGINE_TIMEOUT_S = 900.0
LEAVE_TIMEOUT_S = 10.0
_TELL_EVERY_S = 15.0
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Connection:
    """A rollout service to work with. On this host, weights can go through shared memory.

    `adapters`: it takes LoRA adapters. `shared`: others use it too, and it outlives the attempt.
    """

    engine: Service
    on_this_host: bool
    address: str = LOOPBACK[0]  # where the service reaches this process
    adapters: bool = False
    shared: bool = False
    other_jobs: int = 0  # that may use it at the same time, at most


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
    logging.basicConfig(level=logging.INFO, format="%(asctime)s trainer: %(message)s", stream=sys.stdout)
    reporter = Reporter(folder)
    finish = run_attempt(AttemptDir(folder), settings, reporter, partial(connected, tell=reporter.phase))
    reporter.finish(finish)
    return 0 if finish.outcome != "failed" else 1


@contextmanager
def connected(attempt: AttemptDir, tell: Callable[[str], None]) -> Iterator[Connection]:
    """The attempt's rollout service, once it serves; people are told how long that takes."""
    url = engine_url(attempt, tell=tell)
    place = urlsplit(url)
    host = place.hostname or LOOPBACK[0]
    with RolloutClient(url, attempt.token) as client:
        slots = ready_state(client).adapters
        adapters = slots is not None
        on_this_host = host in LOOPBACK
        try:
            yield Connection(
                client,
                on_this_host=on_this_host,
                address=LOOPBACK[0] if on_this_host else address_towards(host, place.port or 80),
                adapters=adapters,
                shared=attempt.claim().engine is not None,
                other_jobs=slots.slots - 1 if slots is not None else 0,
            )
        finally:
            if adapters:
                # Else the slot is free once the node no longer lists the job. This client may be closed.
                with suppress(RolloutError), RolloutClient(url, attempt.token) as parting:
                    parting.drop_adapter(LEAVE_TIMEOUT_S)


def ready_state(client: RolloutClient, timeout_s: float = ENGINE_TIMEOUT_S) -> EngineState:
    """What a service says of itself once its engine is ready. Raises RolloutError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            return client.health()
        except RolloutError as error:
            if not error.retryable or time.monotonic() > deadline:
                raise
        time.sleep(0.5)


Connect = Callable[[AttemptDir], AbstractContextManager[Connection]]


def run_attempt(attempt: AttemptDir, settings: NodeSettings, reporter: Reporter, connect: Connect) -> Finish:
    """Train, and say how it ended. This is the task's boundary: every failure becomes a typed error here."""
    try:
        claim = attempt.claim()
        use_threads(settings.cpu_slots)
        seed_all(claim.spec.seed)
        with wired(attempt, claim, settings, reporter, connect) as run:
            if train(run) == "checkpointed":
                return Finish(outcome="checkpointed")
            reporter.phase("saving the model")
            return Finish(outcome="finished", result=result(run))
    except Cancelled:
        return Finish(outcome="cancelled")
    except Exception as error:  # noqa: BLE001 (recorded, with its kind, as the attempt's end)
        traceback.print_exc()
        return failed(error)


def failed(error: Exception) -> Finish:
    """The typed failure that an exception stands for."""
    retryable = False
    match error:
        case TrainingError():
            described, retryable = error.error, error.retryable
        case RolloutError():
            described, retryable = error.error, error.retryable
        case ArtefactError():
            described = JobError(code=error.code, message=str(error), remedy=error.remedy)
            retryable = isinstance(error, ArtefactStoreUnavailable)
        case _ if is_out_of_memory(error):
            described = JobError(
                code="out_of_memory",
                message=f"the trainer ran out of memory: {error}",
                path="training.micro_batch_groups",
                remedy="lower training.micro_batch_groups, or set training.gradient_checkpointing",
            )
        case _ if is_disk_full(error):
            described = JobError(
                code="disk_full",
                message=str(error),
                remedy="free space under POWERMEAN_DATA_DIR and /dev/shm on the node",
            )
            retryable = True  # others may have let go of it by then
        case _:
            described = JobError(
                code="trainer_error",
                message=f"{type(error).__name__}: {error}"[:2000],
                remedy="the attempt's log has the whole traceback",
            )
    return Finish(outcome="failed", error=described, retryable=retryable)


def use_threads(cpu_slots: int) -> None:
    """This job's share of the node's cores, unless OMP_NUM_THREADS says otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // max(1, cpu_slots)))


def seed_all(seed: int) -> None:
    """Every generator from the job's seed, and deterministic kernels where there are any."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # it only costs time: nothing reads such memory


@contextmanager
def wired(
    attempt: AttemptDir, claim: Claim, settings: NodeSettings, reporter: Reporter, connect: Connect
) -> Iterator[Run]:
    """The run of a claim, from its last checkpoint on."""
    spec, store = claim.spec, ArtefactStore(settings.artefacts_url)
    scratch = fresh(attempt.path / "scratch")
    remove_stale(claim.job_id)
    if spec.resources.gpus and spec.resources.placement == "colocated":
        # While vLLM measures what of the GPU is left for its cache, it counts what others take as its own.
        engine_url(attempt, tell=reporter.phase)
    reporter.phase("loading the model")
    folder = resolve_model(spec.model, settings.data_dir, settings.model_roots)
    tokenizer = load_tokenizer(folder)
    learner = make_learner(folder, claim, pad_token_id(tokenizer))
    progress = checkpoint.Progress()
    if claim.resume is not None:
        reporter.phase(f"loading the checkpoint of step {claim.resume.step}")
        checkpoint.fetch_folder(store, claim.resume.manifest, scratch / "resume")
        progress = checkpoint.load(scratch / "resume", learner.policy.model, learner.optimizer)
        learner.updates = progress.updates
        shutil.rmtree(scratch / "resume")
    dataset = store.local_copy(claim.dataset, scratch / "dataset.jsonl") if claim.dataset else None
    source = open_source(spec.data, dataset)
    reporter.phase("waiting for the rollout engine")
    with (
        open_grader(spec.reward) as grader,
        connect(attempt) as connection,
        closing(publisher(connection, claim, learner.policy, store, scratch)) as weights,
    ):
        yield Run(
            job_id=claim.job_id,
            attempt=claim.number,
            spec=spec,
            learner=learner,
            source=source,
            grader=grader,
            engine=SteadyEngine(
                connection.engine,
                weights,
                learner.policy.model,
                reporter.phase,
                sharing_limit(spec, connection.other_jobs),
                comes_back=connection.shared,
            ),
            weights=weights,
            reporter=reporter,
            store=store,
            scratch=scratch,
            encode=lambda problems: encode_prompts(tokenizer, problems),
            decode=lambda ids: decode(tokenizer, ids),
            save_model=lambda folder_: save_model(learner.policy, tokenizer, folder_),
            progress=progress,
        )


def make_learner(folder: Path, claim: Claim, pad: int) -> Learner:
    """The policy, its optimiser, and the frozen initial model where the objective has a KL term."""
    spec = claim.spec
    device = resolve_device(spec.model.device, spec.resources.gpus)

    def load(gradient_checkpointing: bool) -> Policy:
        return load_policy(
            folder,
            device=device,
            dtype=resolve_dtype(spec.model.dtype, device),
            temperature=spec.rollout.temperature,
            gradient_checkpointing=gradient_checkpointing,
        )

    policy = load(spec.training.gradient_checkpointing)
    if spec.model.lora is not None:
        name = spec.model.name or spec.model.folder or ""
        assert not isinstance(policy.model, PeftModel)
        policy = replace(policy, model=attach(policy.model, spec.model.lora, name))
    return Learner(
        policy=policy,
        reference=load(False) if spec.algorithm.beta > 0 else None,
        algorithm=build_algorithm(spec.algorithm),
        spec=spec.optimizer,
        optimizer=make_optimizer(policy.model, spec.optimizer),
        micro_batch_groups=spec.training.micro_batch_groups,
        pad_token_id=pad,
    )


def publisher(
    connection: Connection, claim: Claim, policy: Policy, store: ArtefactStore, scratch: Path
) -> Publisher:
    """What rollout.publish says; auto is shared memory on one host with room, else the artefact store.

    An engine that takes adapters gets the adapter alone. Raises TrainingError: adapters_only for a job
    without one, no_shared_memory where shm was asked for and can't be.
    """
    if connection.adapters and claim.spec.model.lora is None:
        raise TrainingError(
            "adapters_only",
            "the job trains all weights, and its rollout engine serves LoRA adapters of one base model",
            path="model.lora",
            remedy="train an adapter, or give the job an engine of its own (rollout.sharing: own)",
        )
    method = claim.spec.rollout.publish
    if method in ("gloo", "nccl", "ipc"):
        connect = connector(method, connection.address)
        return ChannelWriter(claim.job_id, claim.number, method, policy.dtype, connect)
    shared = connection.on_this_host and fits_shared_memory(
        policy.model, policy.dtype, adapter_alone=connection.adapters
    )
    if method == "shm" and not shared:
        raise TrainingError(
            "no_shared_memory",
            "the rollout engine is on another host, or /dev/shm has no room for the weights",
            path="rollout.publish",
            remedy="set rollout.publish to auto or store",
        )
    return WeightWriter(
        job_id=claim.job_id,
        attempt=claim.number,
        method="shm" if shared and method != "store" else "store",
        dtype=policy.dtype,
        store=store,
        scratch=scratch,
        adapter_alone=connection.adapters,
    )


def engine_url(
    attempt: AttemptDir,
    timeout_s: float = ENGINE_TIMEOUT_S,
    tell: Callable[[str], None] = logging.info,
    tell_every_s: float = _TELL_EVERY_S,
) -> str:
    """Where the rollout engine serves, once it does; `tell` is told every now and then how long it has been.

    Raises TrainingError: engine_unreachable, or why the engine did not start.
    """
    began = told = time.monotonic()
    while (start := attempt.engine_start()) is None:
        now = time.monotonic()
        if now > told + tell_every_s:
            told = now
            tell(f"waiting for the rollout engine, {now - began:.0f} s so far; vLLM takes 1 to 3 minutes")
        if now > began + timeout_s:
            raise TrainingError(
                "engine_unreachable",
                f"the rollout engine did not start within {timeout_s:.0f} s",
                remedy="the attempt's log says what it was doing",
                retryable=True,
            )
        time.sleep(0.1)
    if start.error is not None:
        why = start.error
        raise TrainingError(
            why.code, why.message, path=why.path, remedy=why.remedy, retryable=start.retryable
        )
    assert start.url is not None
    return start.url


def result(run: Run) -> JobResult:
    """Store the final model; what the finished job leaves."""
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
