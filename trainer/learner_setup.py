"""A rank's learner: the policy, how ranks hold it, its optimiser, and what a checkpoint left of them."""

import logging
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel

from powermean import memory
from powermean.artefacts import ArtefactStore
from powermean.contracts.attempts import Claim
from powermean.contracts.job import JobSpec
from powermean.contracts.phases import LOADING_MODEL
from trainer.defaults import compiles
from trainer.engine_connection import own_engine_urls
from trainer.forks.start import Start
from trainer.learner import checkpoint
from trainer.learner.fetching import fetch_for_node
from trainer.learner.learner import Learner
from trainer.learner.loading_sharded import load_sharded_policy
from trainer.learner.lora import attach
from trainer.learner.optimizer import MasterWeights, UpdatePlan, make_optimizer
from trainer.learner.tokenizing import load_tokenizer, pad_token_id
from trainer.learner.trial import micro_batch_tokens
from trainer.objectives import build_algorithm
from trainer.policy.loading import Compile, empty_model, load_policy, resolve_device, resolve_dtype
from trainer.policy.policy import Policy
from trainer.ranks.agreement import refuse_different_weights
from trainer.ranks.exchange import Ranks
from trainer.ranks.sharding import held_bytes, layout, make_mesh, rows_held_by
from trainer.ranks.turns import my_turn, turns
from trainer.ranks.world import World
from trainer.seeds import derive_seed
from worker.attempt_dir import AttemptDir
from worker.settings import NodeSettings

log = logging.getLogger(__name__)


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
            shards = rows_held_by(learner.policy.model)
            fetch_for_node(store, claim.resume.manifest, scratch / "resume", world, shards)
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


def make_learner(
    start: Start,
    spec: JobSpec,
    pad: int,
    ranks: Ranks = Ranks(),
) -> Learner:
    """The policy, its optimiser, and the frozen initial model if the objective has a KL term."""
    device = resolve_device(spec.model.device, spec.resources.gpus, ranks.world.local_rank)
    mesh, leads = mesh_of(spec, start.folder, ranks, device), ranks.world.leads
    in_turns = turns_of(start.folder, ranks, device) if mesh is None else 1

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
        with my_turn(ranks, in_turns):
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
    ranks.add_up(torch.zeros(1, device=device))  # NCCL takes its buffers now, before memory is measured
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


def mesh_of(spec: JobSpec, folder: Path, ranks: Ranks, device: torch.device) -> DeviceMesh | None:
    """The ranks over which the model is sharded; None where each has all of it."""
    world = ranks.world
    if world.alone:
        return None
    model = empty_model(folder)
    numbers = sum(weight.numel() for weight in model.parameters())
    with torch.random.fork_rng(devices=()):  # an adapter's first weights are the same as alone
        changed = model if spec.model.lora is None else attach(model, spec.model.lora, "")
    trained = sum(weight.numel() for weight in changed.parameters() if weight.requires_grad)
    needed = held_bytes(spec, numbers, trained)
    how = layout(spec.training.parallel, world, needed, ranks.least(free_bytes(world, device)))
    log.info("the model is held by %d ranks: %s", world.size, how)
    if how == "replicate":
        return None
    mesh = make_mesh(world, how, device)
    ranks.place.count(mesh.get_all_groups())
    return mesh


def turns_of(folder: Path, ranks: Ranks, device: torch.device) -> int:
    """In how many turns ranks load the whole model by way of the host's memory; at once on a CPU, where all
    of it stays."""
    world = ranks.world
    if world.alone or device.type == "cpu":
        return 1
    needed = 4 * sum(weight.numel() for weight in empty_model(folder).parameters())
    return ranks.most(turns(world.local_size, needed, memory.free_bytes()))


def free_bytes(world: World, device: torch.device) -> int:
    """Of memory, for this rank."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // world.local_size


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder
