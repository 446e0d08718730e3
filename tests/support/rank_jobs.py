"""What tests have ranks do (tests/support/rank_crew.py)."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
import torch
from torch import Tensor

from powermean.artefacts import ArtefactStore
from powermean.contracts.algorithms import AlgorithmSpec, Pmpo
from powermean.contracts.models import LoraSpec
from tests.support.attempts import JOB, Stage
from tests.support.learners import GROUPS, SIZE, fail_in, learner, poison, training_batch, weights
from tests.support.update_records import Graded, a_learner, records_of
from trainer import taking_part
from trainer.failures import TrainingError
from trainer.learner.leading import Following, Leading
from trainer.learner.learner import Learner
from trainer.learner.optimizer import make_optimizer
from trainer.ranks.agreement import refuse_different_weights
from trainer.ranks.exchange import END, Ranks, follow
from trainer.ranks.sharding import make_mesh, shard
from trainer.ranks.turns import my_turn
from trainer.ranks.world import World
from trainer.run import follow_attempt
from worker.attempt_dir import AttemptDir


@contextmanager
def float64() -> Iterator[None]:
    """What a batch holds for the updates is of the default type."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def updates(
    ranks: Ranks, of: AlgorithmSpec, given: Graded, tokens: int, lora: LoraSpec | None = None
) -> dict[str, Tensor]:
    """Three updates of a batch: rank 0's records, or the weights of another rank."""
    with float64():
        one = a_learner(of, tokens, by_tree=True, lora=lora)
        return _led(ranks, one, given)


def _led(ranks: Ranks, one: Learner, given: Graded) -> dict[str, Tensor]:
    one.ranks = ranks
    if not ranks.world.leads:
        follow(ranks, Following(one).duties)
        return {"weights": weights(one)}
    found = records_of(one, given)
    ranks.tell(END)
    return found


def attempt(
    world: World,
    pipe: Connection,
    folder: Path,
    model_root: Path,
    spec: dict[str, Any],
    others_root: str | None = None,
) -> None:
    """One rank's part of an attempt: rank 0 sends what was played, another whether it went well.

    `others_root`: the other ranks look for the model elsewhere.
    """
    path = folder / "node" / "attempts" / f"{JOB}.1"
    while not (world.leads or path.exists()):
        time.sleep(0.05)
    stage = Stage(folder, model_root if world.leads or others_root is None else folder / others_root)
    if world.leads:
        pipe.send(stage.play(world=world, **spec))
    else:
        pipe.send(follow_attempt(AttemptDir(path), stage.settings, world))


def wait(ranks: Ranks) -> None:
    """Come to a call that takes all ranks."""
    ranks.wait_for_all()


def load_in_turns(ranks: Ranks, of: int) -> tuple[float, float]:
    """When this rank's turn began and ended."""
    with my_turn(ranks, of):
        began = time.monotonic()
        time.sleep(0.05)
        ended = time.monotonic()
    ranks.wait_for_all()
    return began, ended


def sleep(_ranks: Ranks) -> None:
    """Be busy with something else."""
    time.sleep(60)


def make_room(ranks: Ranks) -> int:
    """How often this rank has freed its GPU memory: an engine is about to wake up beside whole models."""
    one, freed = replace(learner(), ranks=ranks), list[bool]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "empty_cache", lambda: freed.append(True))
        if ranks.world.leads:
            taking_part.make_room(one)
            ranks.tell(END)
        else:
            follow(ranks, taking_part.duties(one, ArtefactStore("file:///nowhere"), Path("/nowhere")))
    return len(freed)


def fail(ranks: Ranks) -> None:
    raise TrainingError("unknown_model", "no such model", path="model.folder", remedy="choose another")


def listening(_ranks: Ranks) -> list[str]:
    """The addresses at which this process listens."""
    return sorted(
        {found.laddr.ip for found in psutil.Process().net_connections() if found.status == "LISTEN"}
    )


def exchanged(ranks: Ranks, tensors: dict[str, Tensor]) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """A command, as it arrives."""
    if ranks.world.leads:
        ranks.tell("this", tensors, number=0.1, missing=None, name="\u00e9")
        return "", {}, {}
    told = ranks.told()
    return told.do, dict(told.facts), dict(told.tensors)


def weights_agree(ranks: Ranks, changed: float) -> None:
    """Rank 1 has another number in one of its weights."""
    one = learner()
    if ranks.world.rank == 1:
        with torch.no_grad():
            next(iter(one.policy.model.parameters()))[3, 5] += changed
    refuse_different_weights(ranks, one.policy.model)


ALONE = Ranks()


@dataclass(frozen=True)
class Case:
    """Updates of tests.support.learners' batch. `poisoned` rows have log-probs that are not finite."""

    algorithm: AlgorithmSpec = field(default_factory=Pmpo)
    tokens: int = 16
    minibatches: tuple[list[int], ...] = ([0, 1], [2, 3]) * 2
    an_epoch: int = 2  # minibatches
    old_policy: Literal["trainer", "sampler"] = "trainer"
    poisoned: tuple[int, ...] = ()
    may_lower: bool = False
    micro_batch_groups: int | None = None
    sharded: bool = False
    options: dict[str, Any] = field(default_factory=dict)


def case(ranks: Ranks, given: Case, out_of_memory_on: int | None = None) -> dict[str, Any]:
    """The weights after the updates and, of rank 0, what it reports; memory may run out once on a rank."""
    one = replace(
        learner(given.algorithm, given.tokens, **given.options),
        may_lower=given.may_lower,
        micro_batch_groups=given.micro_batch_groups,
        ranks=ranks,
    )
    if given.sharded and not ranks.world.alone:
        shard(one.policy.plain_model, make_mesh(ranks.world, "shard", torch.device("cpu")), torch.float32)
        one = replace(one, optimizer=make_optimizer(one.policy.model, one.spec))
    with pytest.MonkeyPatch.context() as patch:
        poison(set(given.poisoned), float("nan"), patch)
        if ranks.world.rank == out_of_memory_on:
            fail_in({1}, patch)  # the pass before it has given gradients and pi_old
        if not ranks.world.leads:
            follow(ranks, Following(one).duties)
            return {"weights": weights(one)}
        batch = replace(training_batch(one.algorithm, old_policy=given.old_policy), recorded=GROUPS * SIZE)
        every, found = Leading(one), dict[str, Any]()
        every.begin(batch)
        every.score_start(batch, given.minibatches[: given.an_epoch])
        for number, groups in enumerate(given.minibatches):
            report = every.update(batch, groups, number)
            found |= {f"{number} {name}": value for name, value in report.values.items()}
            numbers = (report.loss, report.grad_norm, report.distance_to_grpo, report.kl)
            found[f"{number} numbers"] = torch.tensor([math.nan if n is None else n for n in numbers])
    ranks.tell(END)
    found |= {"usable": batch.usable, "entropy": batch.entropy, "old": batch.old_log_probs}
    return found | {"start": batch.start_log_probs, "weights": weights(one)}
