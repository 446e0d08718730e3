"""A model in bfloat16 trains as its float32 masters do: steps that it could not hold are kept, and add up."""

import pytest
import torch
from torch import Tensor, nn

from powermean.contracts.algorithms import Grpo
from powermean.contracts.models import LoraSpec
from powermean.contracts.training import OptimizerSpec
from tests.support.learners import GROUPS, learner, training_batch
from trainer.learner.optimizer import MasterWeights, make_optimizer

SPEC = OptimizerSpec(learning_rate=1e-5)
LORA = LoraSpec(rank=2, alpha=4)


def layer(dtype: torch.dtype) -> nn.Linear:
    """Weights of about 1, whose neighbours in bfloat16 are 2**-7 away or 2**-8."""
    made = nn.Linear(8, 4, bias=False)
    nn.init.uniform_(made.weight, 0.9, 1.1, generator=torch.Generator().manual_seed(0))
    made.weight.data = made.weight.data.bfloat16().to(dtype)
    return made


def backward(model: nn.Linear) -> None:
    (model.weight * torch.linspace(-1, 1, 32).view(4, 8).bfloat16()).sum().backward()


def test_steps_below_a_weights_last_digit_are_kept_and_add_up() -> None:
    """Bit for bit what float32 weights get; bfloat16 weights alone never move."""
    exact, alone, model = layer(torch.float32), layer(torch.bfloat16), layer(torch.float32)
    masters = MasterWeights(model)
    start, master = model.weight.detach().clone(), masters.by_name["weight"]
    optimizers = [
        make_optimizer(exact, SPEC),
        make_optimizer(alone, SPEC),
        make_optimizer(model, SPEC, masters),
    ]
    for number in range(400):
        for one in (exact, alone, model):
            backward(one)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        masters.write_back()
        assert torch.equal(master, exact.weight)
        assert torch.equal(model.weight, master.bfloat16())
        if number == 0:
            assert not torch.equal(master, start.float())
            assert torch.equal(model.weight, start)
    assert torch.equal(alone.weight, start)
    assert (model.weight != start).float().mean() > 0.5


def test_gradients_of_micro_batches_add_up_in_float32_and_leave_the_model() -> None:
    model = layer(torch.float32)
    master = MasterWeights(model).by_name["weight"]
    for size in (256.0, 1.0, 1.0):  # in bfloat16, 256 + 1 is 256
        (model.weight * size).sum().backward()
    assert master.grad is not None
    assert master.grad.unique().tolist() == [258.0]
    assert model.weight.grad is None


@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_all_of_the_model_is_in_bfloat16_and_what_trains_has_masters(lora: LoraSpec | None) -> None:
    one = learner(bfloat16_weights=True, lora=lora)
    trained = {name for name, weight in one.policy.model.named_parameters() if weight.requires_grad}
    assert {weight.dtype for weight in one.policy.model.parameters()} == {torch.bfloat16}
    assert one.master_weights.keys() == trained
    assert {weight.dtype for weight in one.master_weights.values()} == {torch.float32}
    assert not torch.is_autocast_enabled("cpu")
    with one.policy.precision():
        assert not torch.is_autocast_enabled("cpu")


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, LORA], ids=["whole", "lora"])
def test_a_model_in_bfloat16_learns_as_one_in_float32(lora: LoraSpec | None) -> None:
    """The loss of later updates on a batch falls from its first, and by about as much."""
    found = {}
    for rough in (False, True):
        one = learner(Grpo(), bfloat16_weights=rough, lora=lora, learning_rate=3e-3, eps=1e-8)
        batch = training_batch(one.algorithm)
        losses = [one.update(batch, range(GROUPS), number).loss for number in range(6)]
        found[rough] = losses[0] - losses[-1]
    assert found[False] > 0.05
    assert found[True] == pytest.approx(found[False], rel=0.2)


def test_the_model_is_what_its_masters_round_to_after_every_update() -> None:
    one = learner(bfloat16_weights=True, learning_rate=1e-4)
    batch = training_batch(one.algorithm)
    named = dict(one.policy.model.named_parameters())

    def moved(before: dict[str, Tensor]) -> bool:
        return any(not torch.equal(before[name], master) for name, master in one.master_weights.items())

    for number in range(3):
        before = {name: master.detach().clone() for name, master in one.master_weights.items()}
        one.update(batch, range(GROUPS), number)
        assert moved(before)
        for name, master in one.master_weights.items():
            assert torch.equal(named[name], master.bfloat16()), name
            assert master.grad is None
            assert named[name].grad is None
