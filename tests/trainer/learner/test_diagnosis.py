"""Errors of numbers that left the finite say where, and blame the learning rate only after an update."""

import pytest
import torch
from torch import nn

from tests.support.learners import GROUPS, learner, training_batch
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


def test_a_gradient_names_the_first_parameter_on_the_way_back() -> None:
    one = learner()
    model = one.policy.plain_model.model
    for layer in (0, 1):
        model.layers[layer].mlp.down_proj.weight.register_hook(lambda gradient: gradient * torch.nan)
    error = failed(one).error
    assert "the gradient of update 2 is not finite (2 of" in error.message
    assert "first in model.layers.1.mlp.down_proj.weight" in error.message
    assert "backward pass" in error.message
    assert error.path == "model.dtype"


def test_a_loss_is_told_from_its_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    one = learner()
    batch = training_batch(one.algorithm)
    batch.advantages[0] = torch.inf
    with pytest.raises(TrainingError, match="the loss of update 0 is not finite, though its log-probs are"):
        one.update(batch, range(GROUPS), 0)


def test_the_learning_rate_is_a_remedy_once_an_update_was_taken() -> None:
    one = learner()
    one.update(training_batch(one.algorithm), range(GROUPS), 0)
    with torch.no_grad():
        nn.init.constant_(one.policy.plain_model.model.norm.weight, torch.nan)
    error = failed(one).error
    assert "model.norm" in error.message
    assert error.path == "optimizer.learning_rate"
