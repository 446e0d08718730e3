"""What tests have ranks do with a learner whose model they hold together (tests/support/rank_crew.py)."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from powermean.artefacts import ArtefactStore
from powermean.contracts.training import OptimizerSpec
from tests.support.learners import GROUPS, fail_in, learner, training_batch
from tests.support.tiny_model import tiny_config
from trainer.learner import checkpoint, diagnosis
from trainer.learner.checkpoint import Progress
from trainer.learner.leading import Following, Leading
from trainer.learner.learner import Learner
from trainer.learner.optimizer import make_optimizer
from trainer.policy import loading
from trainer.policy.loading import Compile, decoder_layers, make_policy
from trainer.policy.policy import Policy
from trainer.ranks.exchange import END, Ranks, follow
from trainer.ranks.sharding import make_mesh, shard, whole
from trainer.ranks.world import World
from trainer.rollouts.batching import Trajectories
from trainer.taking_part import duties, led

CPU = torch.device("cpu")
GIVEN = Trajectories([[3, 5]], [[7, 11, 13]])


def sharded(ranks: Ranks, compiled: Compile = "off") -> Learner:
    """The learner of tests.support.learners, over all ranks."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config())
    model.train(False)
    shard(model, make_mesh(ranks.world, "shard", CPU), torch.float32)
    policy = make_policy(model, dtype=torch.float32, temperature=1.0, compiled=compiled)
    one = learner(micro_batch_tokens=16)
    return replace(one, policy=policy, optimizer=make_optimizer(policy.model, one.spec), ranks=ranks)


def update(ranks: Ranks, one: Learner) -> None:
    """One, of the whole batch in several micro-batches."""
    if not ranks.world.leads:
        follow(ranks, Following(one).duties)
        return
    batch, every = training_batch(one.algorithm), Leading(one)
    every.begin(batch)
    every.update(batch, range(GROUPS), 0)
    ranks.tell(END)


def run_out_of_memory(ranks: Ranks) -> None:
    """Rank 1 does, in its second pass."""
    one = replace(sharded(ranks), may_lower=True)
    with pytest.MonkeyPatch.context() as patch:
        if ranks.world.rank == 1:
            fail_in({1}, patch)
        update(ranks, one)


def hang_in_a_backward_pass(ranks: Ranks) -> None:
    """Rank 1 does, in the first layer's: others wait for it in FSDP2's collectives."""
    one = sharded(ranks)

    def hang(_layer: nn.Module, _given: object, found: Tensor) -> None:
        found.register_hook(lambda _gradient: time.sleep(60))

    if ranks.world.rank == 1:
        decoder_layers(one.policy.plain_model)[0].register_forward_hook(hang)
    update(ranks, one)


def score_and_sample(ranks: Ranks, seconds: float) -> tuple[int, int]:
    """Rank 0 scores, and then does without the others for a while. Where a rank is after that."""
    one = sharded(ranks)
    if ranks.world.leads:
        policy = led(one)
        policy.score(next(policy.batches(GIVEN, 100)))
        time.sleep(seconds)
        ranks.tell(END)
    else:
        follow(ranks, duties(one, ArtefactStore("file:///nowhere"), Path("/nowhere")))
    return ranks.place.calls, ranks.place.passes


def broken_gradient(ranks: Ranks) -> str:
    """The error of a gradient of which rank 1 holds what is not finite."""
    model = sharded(ranks).policy.model
    for name, weight in model.named_parameters():
        weight.grad = torch.zeros_like(weight)
        assert isinstance(weight.grad, DTensor)
        if name.endswith("1.mlp.down_proj.weight") and ranks.world.rank == 1:
            weight.grad.to_local()[0, 0] = torch.nan
    return str(diagnosis.non_finite_gradient(1, 2, dict(model.named_parameters()), moved=True))


def gradients_of_a_part(ranks: Ranks) -> float:
    """How far the gradients are from one process's, where only rank 0 comes to a layer's MLP."""

    def gradients(policy: Policy, skips: bool) -> dict[str, Tensor]:
        mlp = decoder_layers(policy.plain_model)[1].mlp
        assert isinstance(mlp, nn.Module)
        with pytest.MonkeyPatch.context() as patch:
            if skips:
                patch.setattr(mlp, "forward", lambda hidden: hidden)
            policy.score(next(policy.batches(GIVEN, 100))).log_probs.sum().backward()
        named = policy.model.named_parameters()
        return {name: whole(weight.grad) for name, weight in named if weight.grad is not None}

    found = gradients(sharded(ranks).policy, skips=ranks.world.rank == 1)
    one, other = (gradients(learner().policy, skips) for skips in (False, True))
    assert found.keys() == one.keys() > other.keys()
    return max(float((found[name] - one[name] - other.get(name, 0)).abs().max()) for name in found)


def compiled_in_vain(ranks: Ranks) -> float:
    """Compiled layers break in the backward pass: how far scores are from one process's."""

    def break_it(layers: list[nn.Module]) -> None:
        def fail(_gradient: Tensor) -> None:
            raise RuntimeError("the compiler's")

        def breaking(layer: nn.Module, *given: object, **more: object) -> object:
            found = type(layer).forward(layer, *given, **more)
            found.register_hook(fail)
            return found * 1.0  # so that it comes after the weights were gathered

        layers[0].forward = lambda *given, **more: breaking(layers[0], *given, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loading, "compile_layers", break_it)
        policy = sharded(ranks, compiled="try").policy
    apart = 0.0
    for _ in range(2):
        ours, theirs = (one.score(next(one.batches(GIVEN, 100))) for one in (policy, learner().policy))
        ours.log_probs.sum().backward()
        apart = max(apart, float((ours.log_probs - theirs.log_probs).abs().max()))
    return apart


def limits_of_a_mesh(ranks: Ranks) -> list[timedelta]:
    """Of calls over nodes, and within one: a rank on each of two nodes is all there is here."""
    world = World(ranks.world.rank, ranks.world.size, 0, 1)
    mesh = make_mesh(world, "hybrid", CPU)
    return [group._get_backend(CPU).options._timeout for group in mesh.get_all_groups()]


def reshard_8_bits(ranks: Ranks, folder: Path) -> list[float]:
    """Moments in 8 bits go from one rank to two, and back: how far they then are, of the largest."""
    spec = OptimizerSpec.model_validate({"state": "8bit"})

    def layer() -> nn.Linear:
        torch.manual_seed(0)
        return nn.Linear(128, 128)

    @contextmanager
    def stored(name: str, world: World) -> Iterator[Path]:
        (folder / name).mkdir(exist_ok=True)
        yield folder / name
        ranks.wait_for_all()

    first, spread, last = layer(), layer(), layer()
    fully_shard(spread, mesh=make_mesh(ranks.world, "shard", CPU))
    by_first, by_spread, by_last = (make_optimizer(model, spec) for model in (first, spread, last))
    first(torch.randn(8, 128)).square().sum().backward()
    by_first.step()
    with stored("one", World()) as place:
        if ranks.world.leads:
            checkpoint.save(place, first, by_first, Progress())
    checkpoint.load(folder / "one", spread, by_spread, world=ranks.world)
    with stored("two", ranks.world) as place:
        checkpoint.save(place, spread, by_spread, Progress(), world=ranks.world)
    checkpoint.load(folder / "two", last, by_last)
    apart = []
    for name in ("exp_avg", "exp_avg_sq"):
        before, after = (by.state_dict()["state"][0][name] for by in (by_first, by_last))
        apart.append(float((before - after).abs().max() / before.abs().max()))
    return apart
