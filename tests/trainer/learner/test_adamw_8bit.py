"""AdamW's moments in 8 bits: their memory, what is learned with them, and how they are saved."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from powermean.contracts.training import OptimizerSpec
from tests.support.extras import WITHOUT_TORCHAO
from tests.support.learners import GROUPS, learner, training_batch
from trainer.defaults import MOMENT_BYTES
from trainer.failures import TrainingError
from trainer.learner.checkpoint import Progress, load, save
from trainer.learner.optimizer import make_optimizer

needs_torchao = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason=WITHOUT_TORCHAO)


def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(128, 64)


def trained(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> float:
    """Towards a map that another layer has; the last loss."""
    inputs = torch.randn(256, 128, generator=torch.Generator().manual_seed(1))
    wanted = inputs[:, :64].tanh()
    loss = torch.zeros(())
    for _ in range(steps):
        loss = (model(inputs) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def spec(state: str) -> OptimizerSpec:
    return OptimizerSpec.model_validate({"learning_rate": 1e-3, "weight_decay": 0.01, "state": state})


@needs_torchao
def test_moments_take_the_bytes_that_the_estimate_counts() -> None:
    """Those of small weights, such as biases, stay in float32."""
    model = layer()
    optimizer = make_optimizer(model, spec("8bit"))
    trained(model, optimizer, 1)
    found = [optimizer.state[model.weight][name] for name in ("exp_avg", "exp_avg_sq")]
    size = sum(part.nbytes for one in found for part in (one.codes, one.scale))
    assert size == MOMENT_BYTES["8bit"] * model.weight.numel()
    assert optimizer.state[model.bias]["exp_avg"].dtype == torch.float32


@needs_torchao
def test_it_learns_as_float32_does() -> None:
    losses = []
    for state in ("float32", "8bit"):
        model = layer()
        losses.append(trained(model, make_optimizer(model, spec(state)), 100))
    assert losses[1] < 0.25  # from 0.7
    assert losses[1] == pytest.approx(losses[0], rel=0.2)


@needs_torchao
def test_a_learner_takes_its_steps_with_it() -> None:
    """The rate of each step is the schedule's."""
    one = learner(state="8bit", warmup_updates=1)
    batch = training_batch(one.algorithm)
    one.score(batch, range(GROUPS))
    for number, rate in enumerate((5e-3, 1e-2)):
        assert one.update(batch, range(GROUPS), number).grad_norm
        assert [float(group["lr"]) for group in one.optimizer.param_groups] == pytest.approx([rate, rate])


@needs_torchao
@pytest.mark.parametrize("goes_on_with", ["8bit", "float32"])
def test_a_run_goes_on_from_its_checkpoint(goes_on_with: str, tmp_path: Path) -> None:
    """With 8 bits again bit for bit; with float32 from the same numbers."""
    model = layer()
    optimizer = make_optimizer(model, spec("8bit"))
    trained(model, optimizer, 5)
    save(tmp_path, model, optimizer, Progress(step=5))
    other = nn.Linear(128, 64)
    resumed = make_optimizer(other, spec(goes_on_with))
    load(tmp_path, other, resumed)
    trained(model, optimizer, 1)
    trained(other, resumed, 1)
    if goes_on_with == "8bit":
        trained(model, optimizer, 5)
        trained(other, resumed, 5)
        assert torch.equal(other.weight, model.weight)
    torch.testing.assert_close(other.weight, model.weight, atol=1e-6, rtol=0)


def test_a_node_without_torchao_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(TrainingError, match="needs torchao") as refused:
        make_optimizer(layer(), spec("8bit"))
    assert (refused.value.code, refused.value.error.path) == ("torchao_missing", "optimizer.state")
    make_optimizer(layer(), spec("float32"))
