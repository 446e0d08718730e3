"""A model whose weights, gradients and optimiser state are spread over ranks (FSDP2).

Each layer is a unit: its weights are gathered for its forward pass, again for its backward pass, and dropped.
What lies outside of the layers (embedding, last norm, output layer) is one more unit. Between passes a weight
is a DTensor of which each rank has some rows, float32; passes work with weights rounded to the policy's type,
gradients are added up in float32. They are SUMMED over ranks, not averaged: the loss has the denominators of
the whole minibatch.

A pass is a collective: every rank takes as many, in the same order, and so is whatever gathers weights.
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from powermean.contracts.job import JobSpec
from trainer.defaults import MOMENT_BYTES
from trainer.policy.loading import decoder_layers
from trainer.policy.one_pass import allow_passes
from trainer.ranks.world import World

Layout = Literal["replicate", "shard", "hybrid"]

SHARE = 0.6  # of a GPU's memory, for what each rank holds of the model; the rest is for passes


def layout(
    wanted: Literal["auto", "replicate", "shard", "hybrid"], world: World, needed: int, room: int
) -> Layout:
    """How ranks hold a model that takes `needed` bytes with gradients and optimiser, of the `room` of each.

    auto: replicated where it fits, else sharded; over several nodes hybrid, where a node's part fits.
    """
    if world.alone:
        return "replicate"
    several = world.nodes > 1 and world.local_size > 1
    if wanted == "hybrid":
        return "hybrid" if several else "shard"
    if wanted != "auto":
        return wanted
    if needed <= SHARE * room:
        return "replicate"
    return "hybrid" if several and needed <= SHARE * room * world.local_size else "shard"


def held_bytes(spec: JobSpec, numbers: int, trained: int) -> int:
    """Of a whole model with its gradients and AdamW's moments, and the frozen initial model."""
    weights = 4 * numbers
    if spec.training.weights == "bfloat16":  # beside float32 ones of what is trained
        weights = 2 * numbers + 4 * trained
    reference = 4 * numbers if spec.algorithm.beta > 0 else 0
    return weights + int((4 + MOMENT_BYTES[spec.optimizer.state]) * trained) + reference


def make_mesh(world: World, how: Literal["shard", "hybrid"], device: torch.device) -> DeviceMesh:
    """The ranks as FSDP2 takes them: [size], or [nodes, ranks of a node]. A collective."""
    if how == "hybrid":
        mesh = init_device_mesh(
            device.type, (world.nodes, world.local_size), mesh_dim_names=("replicate", "shard")
        )
        assert dist.group.WORLD is not None
        limit = dist.group.WORLD._get_backend(device).options._timeout
        for group in mesh.get_all_groups():  # else they have one of torch's own, which may come before
            _set_pg_timeout(limit, group)
        return mesh
    return init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))


def shard(
    model: PreTrainedModel | PeftModel,
    mesh: DeviceMesh,
    dtype: torch.dtype,
    fill: Callable[[nn.Module], None] = lambda unit: None,
) -> None:
    """Spread a float32 model over the mesh, in place; passes are in `dtype`.

    One unit after the other goes to the mesh's device, where a rank keeps its rows: the whole is never there.
    `fill` may give a unit its weights just before (`from_first_rank`). An adapter must be attached before,
    the optimiser made after it. A collective.
    """
    root = model.get_base_model() if isinstance(model, PeftModel) else model
    assert isinstance(root, PreTrainedModel)
    precision = MixedPrecisionPolicy()
    if dtype == torch.bfloat16:
        # Layers hand on what they were given, so inputs are of that type already.
        precision = MixedPrecisionPolicy(dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for unit in (*reversed(decoder_layers(root)), root):
        fill(unit)
        # The root, too, drops them after a pass: a weight is always a rank's own rows then.
        spread: FSDPModule = fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        spread.set_gradient_divide_factor(1.0)  # sums, by an operation that gloo has, too
        spread.set_force_sum_reduction_for_comms(True)
        spread.set_reduce_scatter_unused_params(True)  # a weight's gradient may be on some ranks alone
    allow_passes(root)


def from_first_rank(device: torch.device) -> Callable[[nn.Module], None]:
    """For `shard`: rank 0 has the weights, other ranks have a model on the meta device. Rank 0 sends them.

    Each rank's GPU has a unit at a time, and only rank 0's host ever has the model.
    """

    filled: set[nn.Module] = set()

    def fill(unit: nn.Module) -> None:
        made: dict[int, Tensor] = {}  # what is tied stays so
        due = [module for module in unit.modules() if module not in filled]
        filled.update(due)
        for module in due:
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in made:
                        made[id(tensor)] = _sent(tensor, device)
                    tensors[name] = made[id(tensor)]  # type: ignore[assignment]

    return fill


def _sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A module's tensor as rank 0 has it."""
    there = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
    if not tensor.is_meta:
        there.copy_(tensor.detach())
    dist.broadcast(there.reshape(-1).view(torch.uint8), src=0)
    return nn.Parameter(there, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else there


def last_pass(model: nn.Module, last: bool) -> None:
    """Say whether the coming backward pass is an update's last.

    Within a node gradients are reduced in each, so that a rank never holds more than its rows of them. Over
    nodes (hybrid) they are only in the last, as each node's sums add up until then.
    """
    weight = next(model.parameters())
    if not (isinstance(weight, DTensor) and weight.device_mesh.ndim > 1):
        return
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_requires_all_reduce(last, recurse=False)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor of which this rank may have some rows. A collective then."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def rows_held_by(model: nn.Module) -> int:
    """How many ranks, rank 0 the first, hold the model together; the others have copies of their rows."""
    for weight in model.parameters():
        if isinstance(weight, DTensor):
            mesh = weight.device_mesh
            return mesh.size(mesh.ndim - 1)
    return 1
