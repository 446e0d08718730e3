"""Small policies, whole or spread over ranks, updates of them, and how two are compared."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from transformers import LlamaForCausalLM

from powermean.contracts.models import LoraSpec
from powermean.contracts.training import OptimizerSpec
from tests.support.tiny_model import tiny_config
from trainer.learner.lora import attach
from trainer.learner.optimizer import make_optimizer
from trainer.policy.loading import checkpoint_layers
from trainer.policy.policy import Policy
from trainer.policy.tree_attention import attend_by_trees
from trainer.ranks.sharding import last_pass, shard, whole
from trainer.rollouts.batching import Trajectories

CPU = torch.device("cpu")
# A large eps: without it AdamW turns the rounding of a gradient near 0 into a whole step.
SPEC = OptimizerSpec(learning_rate=1e-2, warmup_updates=0, eps=1e-2, weight_decay=0.1)
LORA = LoraSpec(rank=4, alpha=8)
ROWS = 8


@dataclass(frozen=True)
class Kind:
    """A model, and how its passes are made."""

    tied: bool = True
    lora: bool = False
    checkpointing: bool = False
    dtype: torch.dtype = torch.float32


def model(kind: Kind) -> nn.Module:
    """The same on every rank."""
    torch.manual_seed(0)
    made = LlamaForCausalLM(tiny_config(tie_word_embeddings=kind.tied))
    if not kind.lora:
        return made
    adapted = attach(made, LORA, "tiny")
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if ".lora_" in name:
                weight.normal_(std=0.05)
    return adapted


def policy(kind: Kind, mesh: DeviceMesh | None = None) -> Policy:
    """What `make_policy` makes, without its trials."""
    made = model(kind)
    if mesh is not None:
        shard(made, mesh, kind.dtype)
    found = Policy(made, 0.9, kind.dtype, CPU, by_tree=True)
    attend_by_trees(found.plain_model)
    if kind.checkpointing:
        checkpoint_layers(found.plain_model)
    return found


def optimizer(of: Policy) -> torch.optim.Optimizer:
    return make_optimizer(of.model, SPEC)


def rows(seed: int) -> Trajectories:
    """Two prompts, completions of 1 to 6 tokens."""
    chance = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(0, 19, (3 + place,), generator=chance).tolist() for place in range(2)]
    lengths = torch.randint(1, 7, (ROWS,), generator=chance).tolist()
    completions = [torch.randint(0, 19, (length,), generator=chance).tolist() for length in lengths]
    return Trajectories([prompts[row * 2 // ROWS] for row in range(ROWS)], completions)


def part(given: Trajectories, numbers: range) -> Trajectories:
    return Trajectories([given.prompts[n] for n in numbers], [given.completions[n] for n in numbers])


def update(
    of: Policy, by: torch.optim.Optimizer, seed: int, ranks: int = 1, rank: int = 0
) -> tuple[dict[int, Tensor], float]:
    """One update in two micro-batches on each rank: log-probs of this rank's rows, the gradient's norm."""
    given, seen = rows(seed), {}
    for micro_batch in range(2):
        numbers = range(micro_batch * ranks + rank, ROWS, 2 * ranks)
        tree = next(of.batches(part(given, numbers), 10**6))
        last_pass(of.model, micro_batch == 1)
        log_probs = of.score(tree).log_probs
        pull = torch.tensor([(-1.0) ** n * (n + 1) for n in numbers])[tree.rows]
        (log_probs * pull[:, None]).sum().div(10.0).backward()
        for place, row in enumerate(tree.rows.tolist()):
            seen[numbers[row]] = log_probs[place, : len(given.completions[numbers[row]])].detach()
    weights = [weight for group in by.param_groups for weight in group["params"]]
    norm = whole(nn.utils.get_total_norm(w.grad for w in weights if w.grad is not None))
    nn.utils.clip_grads_with_norm_(weights, SPEC.max_grad_norm, norm)
    by.step()
    by.zero_grad(set_to_none=True)
    return seen, float(norm)


def state(of: Policy) -> dict[str, Tensor]:
    return {name: whole(weight.detach()) for name, weight in of.model.state_dict().items()}


def close(one: Tensor, other: Tensor, most: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=most, atol=most)


def equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def pairs() -> DeviceMesh:
    """Ranks 0 and 1, and beside them 2 and 3, which do the same."""
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("beside", "shard"))["shard"]


def four() -> DeviceMesh:
    return init_device_mesh("cpu", (4,), mesh_dim_names=("shard",))


def two_nodes() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
