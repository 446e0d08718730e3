"""What sharded ranks really hold beside the estimate, run by two ranks at once (test_ranks_memory.py)."""

import importlib
import traceback
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import LlamaForCausalLM

from powermean.contracts.job import JobSpec
from powermean.contracts.models import LoraSpec
from tests.support.tiny_model import tiny_config, tiny_spec
from trainer.learner.lora import attach
from trainer.learner.optimizer import make_optimizer
from trainer.policy.loading import decoder_layers, make_policy
from trainer.policy.policy import Policy
from trainer.preflight.footprint import Footprint, footprint
from trainer.preflight.layout import by_layer
from trainer.preflight.model_facts import ModelFacts
from trainer.ranks.exchange import Ranks
from trainer.ranks.sharding import make_mesh, shard
from trainer.ranks.world import World
from trainer.rollouts.batching import Trajectories

IN_8_BITS = "moments in 8 bits"
CONFIG = tiny_config(vocab_size=64, hidden_size=128, intermediate_size=256)  # rows that divide
PROMPT = 3


def job(**changes: Any) -> JobSpec:
    """Micro-batches are of one row: gradients are whole while a pass runs."""
    training = {"steps": 1, "parallel": "shard", "micro_batch_tokens": PROMPT + 4}
    given = tiny_spec("tiny") | {"resources": {"cpu_ranks": 2}, "training": training}
    return JobSpec.model_validate(given | changes)


def facts() -> ModelFacts:
    model = LlamaForCausalLM(CONFIG)
    shapes = {name: tuple(weight.shape) for name, weight in model.named_parameters()}
    return ModelFacts(CONFIG.to_dict(), shapes)


def estimated(spec: JobSpec) -> Footprint:
    found = footprint(spec, facts(), PROMPT, cuda=False)
    assert found is not None
    assert found.layout.shards == 2
    return found


def sharded(world: World, lora: LoraSpec | None = None) -> Policy:
    torch.manual_seed(0)
    model: nn.Module = LlamaForCausalLM(CONFIG)
    if lora is not None:
        model = attach(model, lora, "tiny")  # type: ignore[arg-type]
    shard(model, make_mesh(world, "shard", torch.device("cpu")), torch.float32)  # type: ignore[arg-type]
    return make_policy(
        model,  # type: ignore[arg-type]
        dtype=torch.float32,
        temperature=1.0,
        gradient_checkpointing=False,
        compiled="off",
    )


def backward(policy: Policy) -> None:
    given = Trajectories([[1, 2, 3]], [[4, 5, 6, 7]])
    policy.score(next(policy.batches(given, 64))).log_probs.sum().backward()


def held(tensors: list[Tensor]) -> int:
    """Bytes on this rank."""
    return sum((one.to_local() if isinstance(one, DTensor) else one).nbytes for one in tensors)


def of_both(ranks: Ranks, size: int) -> int:
    return int(ranks.total(torch.tensor([size])))


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]


def weights_gradients_and_moments(ranks: Ranks) -> None:
    """To the byte."""
    policy, spec = sharded(ranks.world), job()
    expected, weights = estimated(spec), list(policy.model.parameters())
    optimizer = make_optimizer(policy.model, spec.optimizer)
    assert held(weights) == expected.weights
    backward(policy)
    assert held([weight.grad for weight in weights if weight.grad is not None]) == expected.gradients
    optimizer.step()
    assert held(moments(optimizer)) == expected.moments


def an_adapter_over_a_sharded_base(ranks: Ranks) -> None:
    """The base is in parts, and has neither gradients nor moments. The adapter's own weights are left out of
    the estimate's, as they are for one rank."""
    lora = LoraSpec(rank=4)
    policy, spec = sharded(ranks.world, lora), job(model={"folder": "tiny", "lora": lora.model_dump()})
    expected = estimated(spec)
    base = [weight for weight in policy.model.parameters() if not weight.requires_grad]
    trained = [weight for weight in policy.model.parameters() if weight.requires_grad]
    optimizer = make_optimizer(policy.model, spec.optimizer)
    assert held(base) == expected.weights
    backward(policy)
    optimizer.step()
    assert of_both(ranks, held(moments(optimizer))) == 2 * expected.moments
    assert of_both(ranks, held([w.grad for w in trained if w.grad is not None])) == of_both(
        ranks, held(trained)
    )


def moments_in_8_bits(ranks: Ranks) -> None:
    """To the byte, but for small weights, whose moments stay in float32; saved, they come back close by."""
    kept = importlib.import_module("torchao.optim.subclass_8bit").OptimState8bit  # an extra
    spec = job(optimizer={"state": "8bit"})
    policy = sharded(ranks.world)
    optimizer = make_optimizer(policy.model, spec.optimizer)
    for _ in range(2):
        backward(policy)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    parts = [one.to_local() for one in moments(optimizer) if isinstance(one, DTensor)]
    codes = [one for one in parts if isinstance(one, kept)]
    plain = [one for one in parts if not isinstance(one, kept)]
    size = sum(one.codes.nbytes + one.scale.nbytes for one in codes)
    small = sum(one.numel() for one in plain)
    assert 0 < small < sum(one.numel() for one in codes) / 50
    assert size + small * (1 + 4 / 256) == estimated(spec).moments
    saved = optimizer.state_dict()
    optimizer.load_state_dict(saved)
    again = optimizer.state_dict()["state"]
    for number in saved["state"]:
        for name in ("exp_avg", "exp_avg_sq"):
            one, other = (each[number][name].full_tensor() for each in (saved["state"], again))
            torch.testing.assert_close(one, other, rtol=0, atol=0.01 * float(one.abs().max()))


def gathered_layers(ranks: Ranks) -> None:
    """Never more than the layers outside and two others; in a pass, at least one beside those outside."""
    policy = sharded(ranks.world)
    layer, outside = by_layer(facts().shapes)
    seen: list[int] = []

    def look(*_: object) -> None:
        seen.append(sum(w.numel() for w in policy.model.parameters() if not isinstance(w, DTensor)))

    hooks: list[Callable[[nn.Module], object]] = [
        lambda module: module.register_forward_hook(look),
        lambda module: module.register_full_backward_hook(look),
    ]
    for part in decoder_layers(policy.plain_model):
        for hook in hooks:
            hook(part.mlp)  # in the middle of the layer's own pass
    backward(policy)
    assert len(seen) == 2 * CONFIG.num_hidden_layers
    assert set(seen) <= {outside + layer, outside + 2 * layer}
    assert 4 * max(seen) < estimated(job()).gathered
    look()
    assert seen[-1] == 0


CASES: dict[str, Callable[[Ranks], None]] = {
    "weights, gradients and moments": weights_gradients_and_moments,
    "an adapter over a sharded base": an_adapter_over_a_sharded_base,
    IN_8_BITS: moments_in_8_bits,
    "gathered layers": gathered_layers,
}


def run_case(ranks: Ranks, name: str) -> str:
    """What a case raised on this rank; nothing if it holds."""
    try:
        CASES[name](ranks)
    except Exception:  # noqa: BLE001 (the test shows it)
        return traceback.format_exc()
    return ""
