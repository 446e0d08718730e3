"""Errors of numbers that left the finite say where, and blame the learning rate only after an update."""

import pytest
import torch
from torch import nn

from powermean.contracts.algorithms import Pmpo
from powermean.contracts.models import LoraSpec
from tests.support.learners import GROUPS, learner, training_batch, weights
from trainer.failures import TrainingError
from trainer.learner.learner import Learner


def failed(one: Learner) -> TrainingError:
    with pytest.raises(TrainingError) as caught:
        one.update(training_batch(one.algorithm), range(GROUPS), 2)
    assert caught.value.error.code == "non_finite_loss"
    return caught.value


def test_log_probs_name_the_first_module_whose_output_is_not_finite() -> None:
    one = learner()
    with torch.no_grad():
        one.policy.plain_model.model.layers[1].mlp.up_proj.weight[3] = torch.nan
    error = failed(one).error
    assert error.message.startswith("step 7: the log-probs of all trajectories are not finite")
    assert "layers.1.mlp.up_proj" in error.message
    assert "before any update was taken" in error.message
    assert "learning_rate" not in (error.remedy or "")


@pytest.mark.parametrize("kind", [{}, {"bfloat16_weights": True}], ids=["float32", "bfloat16 weights"])
def test_a_gradient_names_the_first_parameter_on_the_way_back(kind: dict[str, bool]) -> None:
    one = learner(**kind)
    model = one.policy.plain_model.model
    for layer in (0, 1):
        model.layers[layer].mlp.down_proj.weight.register_hook(lambda gradient: gradient * torch.nan)
    error = failed(one).error
    assert "the gradient of update 2 is not finite (2 of" in error.message
    assert "first in model.layers.1.mlp.down_proj.weight" in error.message
    assert "backward pass" in error.message
    assert error.path == "model.dtype"


def test_an_adapters_gradient_names_its_layer() -> None:
    one = learner(lora=LoraSpec(rank=2, alpha=4, target_modules=("q_proj",)))
    layer = one.policy.plain_model.model.layers[0].self_attn.q_proj
    layer.lora_B["default"].weight.register_hook(lambda gradient: gradient * torch.inf)
    message = failed(one).error.message
    assert "(1 of 4 parameters, first in base_model.model.model.layers.0.self_attn.q_proj.lora_B" in message


def test_a_norm_that_overflows_is_told_from_a_broken_gradient() -> None:
    one = learner()
    for weight in one.policy.model.parameters():
        weight.register_hook(lambda gradient: gradient.sign() * 1e30)
    message = failed(one).error.message
    assert "(0 of" in message
    assert "only in their norm, which overflows" in message


@pytest.mark.parametrize("value", [torch.inf, torch.nan])
def test_a_loss_is_told_from_its_gradient(value: float) -> None:
    one = learner()
    batch = training_batch(one.algorithm)
    batch.advantages_on_device[0] = value
    before = weights(one)
    with pytest.raises(
        TrainingError, match="the loss of update 0 is not finite, though its log-probs are"
    ) as caught:
        one.update(batch, range(GROUPS), 0)
    assert caught.value.error.path == "model.dtype"
    assert torch.equal(weights(one), before)


def test_a_kl_term_that_is_not_finite_is_the_losss() -> None:
    one = learner(Pmpo(beta=0.1))
    batch = training_batch(one.algorithm)
    one.score_reference(batch, range(GROUPS))
    batch.reference_log_probs[0] = torch.nan
    with pytest.raises(TrainingError, match="the loss of update 0 is not finite"):
        one.update(batch, range(GROUPS), 0)


BREAKS = {
    "log-probs": lambda one, _batch: nn.init.constant_(one.policy.plain_model.model.norm.weight, torch.nan),
    "loss": lambda _one, batch: batch.advantages_on_device.mul_(torch.nan),
    "backward pass": lambda one, _batch: one.policy.plain_model.model.norm.weight.register_hook(
        lambda gradient: gradient * torch.nan
    ),
}


@pytest.mark.parametrize("source", BREAKS)
@pytest.mark.parametrize("updates", [0, 1])
def test_the_learning_rate_is_a_remedy_once_an_update_was_taken(source: str, updates: int) -> None:
    """Not for an update that was one in name alone: no group of its had spread."""
    one = learner()
    batch = training_batch(one.algorithm)
    one.update(batch, range(GROUPS) if updates else [1], 0)
    assert one.updates == updates
    with torch.no_grad():
        BREAKS[source](one, batch)
    with pytest.raises(TrainingError, match=f"step 7: .*{source}") as caught:
        one.update(batch, range(GROUPS), 1)
    error = caught.value.error
    assert error.path == ("optimizer.learning_rate" if updates else "model.dtype")
    assert ("learning_rate" in (error.remedy or "")) is bool(updates)
    assert ("before any update was taken" in error.message) is not bool(updates)
