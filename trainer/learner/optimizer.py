"""AdamW over float32 weights: the model's own, or float32 masters of a model in bfloat16."""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from powermean.contracts.training import OptimizerSpec
from trainer.failures import check_installed


@dataclass(frozen=True)
class UpdatePlan:
    """How many updates a run has, as far as that is known before it."""

    steps: int = 1
    per_step: int = 1

    @property
    def total(self) -> int:
        return self.steps * self.per_step

    def place(self, step: int, number: int) -> int:
        """Of a step's update, from 0: whether updates before it were skipped makes no difference."""
        return (step - 1) * self.per_step + number


def learning_rate(spec: OptimizerSpec, taken: int, place: int, total: int) -> float:
    """The rate of the update at `place` of `total`, after `taken` optimiser steps.

    The linear rise from 0 counts steps that were taken, which AdamW's moments come from; the schedule counts
    places, so that it ends with the run. It is that of transformers from the end of the warm-up on.
    """
    warmup = spec.warmup(total)
    rate = spec.learning_rate * min(1.0, (taken + 1) / (warmup + 1))
    if spec.schedule == "constant":
        return rate
    gone = min(1.0, max(0.0, (place - warmup) / max(1, total - warmup)))
    left = 1 - gone if spec.schedule == "linear" else (1 + math.cos(math.pi * gone)) / 2
    return rate * (spec.final_learning_rate_ratio + (1 - spec.final_learning_rate_ratio) * left)


class MasterWeights:
    """Float32 copies of the weights that a bfloat16 model is trained with.

    Without them, steps below a bfloat16 weight's last digit would be lost. Gradients of micro-batches add up
    in float32 at the masters, where the optimiser finds them; the model's own are dropped as they come.
    """

    def __init__(self, model: nn.Module) -> None:
        """Turns the model's weights into bfloat16, in place."""
        trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self._weights: list[Tensor] = list(trained.values())
        self.by_name: dict[str, nn.Parameter] = {
            name: nn.Parameter(weight.detach().float().clone()) for name, weight in trained.items()
        }
        for weight in model.parameters():
            if weight.is_floating_point():
                weight.data = weight.data.bfloat16()
        for trainable, master in zip(self._weights, self.by_name.values(), strict=True):
            trainable.register_post_accumulate_grad_hook(_to(master))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def write_back(self) -> None:
        """Round the masters into the model."""
        torch._foreach_copy_(self._weights, list[Tensor](self.by_name.values()))


def _to(master: nn.Parameter) -> Callable[[Tensor], None]:
    def take(weight: Tensor) -> None:
        assert weight.grad is not None
        if master.grad is None:
            master.grad = weight.grad.float()
        else:
            master.grad += weight.grad
        weight.grad = None

    return take


def make_optimizer(
    model: nn.Module, spec: OptimizerSpec, masters: MasterWeights | None = None
) -> torch.optim.Optimizer:
    """AdamW over the model's weights, or over their masters; biases and norms don't decay.

    Raises TrainingError (torchao_missing) where the spec wants state that this node can't keep.
    """
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    if masters is not None:
        weights = [*masters.by_name.values()]
    groups = [
        {"params": [w for w in weights if w.dim() >= 2], "weight_decay": spec.weight_decay},
        {"params": [w for w in weights if w.dim() < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if spec.state == "8bit":
        check_installed(spec)
        # Imported here on purpose: torchao is an extra.
        found: torch.optim.Optimizer = importlib.import_module("trainer.learner.adamw_8bit").EightBitAdamW(
            groups, lr=spec.learning_rate, betas=spec.betas, eps=spec.eps
        )
        return found
    return torch.optim.AdamW(
        groups,
        lr=spec.learning_rate,
        betas=spec.betas,
        eps=spec.eps,
        fused=True,
    )
