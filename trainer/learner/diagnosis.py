"""Where numbers left the finite: looked for only once they have."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from trainer.failures import TrainingError
from trainer.policy.policy import Policy
from trainer.policy.token_tree import TokenTree
from trainer.ranks.sharding import whole


def non_finite_log_probs(step: int, policy: Policy, tree: TokenTree, moved: bool) -> TrainingError:
    """The error of a step in which no trajectory has finite log-probs; `tree` holds some of them."""
    where = first_non_finite_output(policy, tree)
    origin = f"they leave the finite in {where}" if where else "though the forward pass is finite now"
    return _error(step, f"the log-probs of all trajectories are not finite: {origin}", moved)


def non_finite_gradient(step: int, update: int, weights: Mapping[str, Tensor], moved: bool) -> TrainingError:
    """The error of an update whose log-probs and loss were finite and whose gradient is not."""
    broken = [name for name, weight in weights.items() if _broken(weight.grad)]
    known = sum(weight.grad is not None for weight in weights.values())
    where = f"first in {broken[-1]}" if broken else "only in their norm, which overflows"
    message = (
        f"the gradient of update {update} is not finite ({len(broken)} of {known} parameters, {where}); "
        "its log-probs were, so it was the backward pass"
    )
    return _error(step, message, moved)


def non_finite_loss(step: int, update: int, moved: bool) -> TrainingError:
    """The error of an update whose log-probs were finite and whose loss is not."""
    return _error(step, f"the loss of update {update} is not finite, though its log-probs are", moved)


@torch.no_grad()
def first_non_finite_output(policy: Policy, tree: TokenTree) -> str | None:
    """The first module, in the order in which they end, whose output has a number that is not finite."""
    found: list[str] = []
    handles = []

    def watch(name: str) -> object:
        def look(_module: nn.Module, _inputs: object, output: object) -> None:
            if not found and _broken(output[0] if isinstance(output, tuple) else output):
                found.append(name)

        return look

    for name, module in policy.plain_model.named_modules():
        if name:
            handles.append(module.register_forward_hook(watch(name)))
    try:
        policy.score(tree)
    finally:
        for handle in handles:
            handle.remove()
    return found[0] if found else None


def _broken(value: object) -> bool:
    """Of a sharded gradient, the same on all ranks. A collective then."""
    return isinstance(value, Tensor) and value.is_floating_point() and not bool(whole(value.isfinite().all()))


def _error(step: int, what: str, moved: bool) -> TrainingError:
    """Before the first update the weights are the model's own: the learning rate can't be to blame."""
    if moved:
        return TrainingError(
            "non_finite_loss",
            f"step {step}: {what}",
            path="optimizer.learning_rate",
            remedy="lower optimizer.learning_rate or max_grad_norm, or raise optimizer.warmup_updates",
        )
    return TrainingError(
        "non_finite_loss",
        f"step {step}: {what}, before any update was taken",
        path="model.dtype",
        remedy="the model's own numbers do it: try model.dtype float32, and report it if that helps",
    )
