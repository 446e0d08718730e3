"""The losses of TRL's own trainers on the same tensors: value and gradient, float64.

TRL is in the `dev` extra: `make test` installs it. Its `_compute_loss` is called as it lies in the package.
"""

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from pydantic import TypeAdapter
from torch import Tensor

from powermean.contracts.algorithms import AlgorithmSpec
from tests.support.law_settings import at_most
from tests.trainer.objectives.objective_batches import Batch, batches
from trainer.objectives import batch_facts, build_algorithm, kl_penalty

pytestmark = pytest.mark.slow  # the import of TRL's trainers alone takes seconds

LENGTH = 17  # TRL's max_completion_length
# Irrational edges: the strategies' round numbers never sit on a kink, where subgradients may differ.
LOW, HIGH = 0.2 + 1e-4 * 2**0.5, 0.28 + 1e-4 * 3**0.5


@pytest.fixture(scope="module")
def trainer() -> Any:
    trl = pytest.importorskip("trl", reason="TRL is not installed (the `dev` extra): nothing to compare with")
    return trl.GRPOTrainer


def trl_loss(
    trainer: Any, batch: Batch, leaf: Tensor, old: Tensor, reference: Tensor, **settings_: Any
) -> Tensor:
    """TRL's `_compute_loss` on given log-probs: the model's forward pass is replaced, nothing else."""
    inside = batch.mask.double()
    entropies = torch.zeros_like(leaf.detach())
    stub = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (leaf, entropies, None),
        _entropy_bonus_enabled=False,
        _metrics=defaultdict(lambda: defaultdict(list)),
        accelerator=SimpleNamespace(
            num_processes=1, gather=lambda x: x, gather_for_metrics=lambda x: x, reduce=lambda x, reduction: x
        ),
        args=SimpleNamespace(delta=None, steps_per_generation=1, use_bias_correction_kl=False),
        aux_loss_enabled=False,
        beta=0.0,
        current_gradient_accumulation_steps=1,
        epsilon_low=LOW,
        epsilon_high=HIGH,
        importance_sampling_level="token",
        max_completion_length=LENGTH,
        model=SimpleNamespace(training=True),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
        use_vllm=False,
    )
    vars(stub).update(settings_)
    rows, width = leaf.shape
    inputs = {
        "prompt_ids": torch.zeros(rows, 1, dtype=torch.long),
        "prompt_mask": torch.ones(rows, 1, dtype=torch.long),
        "completion_ids": torch.zeros(rows, width, dtype=torch.long),
        "completion_mask": inside,
        "advantages": batch.advantages,
        "old_per_token_logps": old,
        "ref_per_token_logps": reference,
        "num_items_in_batch": inside.sum(),
    }
    loss = trainer._compute_loss(stub, None, inputs)
    assert isinstance(loss, Tensor)
    return loss


def compare(name: str, batch: Batch, trainer: Any, beta: float = 0.0, **trl_settings: Any) -> None:
    fields = {} if name in ("cispo", "gmpo") else {"epsilon_low": LOW, "epsilon_high": HIGH}
    algorithm = build_algorithm(TypeAdapter(AlgorithmSpec).validate_python({"name": name} | fields))
    # TRL has no trajectory without tokens in its denominators' sense: give every row one
    mask = batch.mask.clone()
    mask[:, 0] = True
    batch = Batch(batch.x, mask, batch.advantages)
    old = torch.linspace(-2, -0.1, batch.x.numel()).double().reshape(batch.x.shape)
    reference = old - 0.3
    leaf = (batch.x + old).requires_grad_()
    theirs = trl_loss(trainer, batch, leaf, old, reference, beta=beta, **trl_settings)
    (their_gradient,) = torch.autograd.grad(theirs, leaf)

    facts = batch_facts(mask, max_tokens=LENGTH)
    ours = algorithm.loss(leaf - old, mask, batch.advantages, facts).loss
    if beta:
        ours = ours + kl_penalty(leaf, reference, mask, beta, facts.tokens)
    (our_gradient,) = torch.autograd.grad(ours, leaf)
    torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-9, atol=1e-11)
    if name == "cispo":  # counted from pi_old: a constant apart
        ratio = batch.x.exp().clamp(max=5.0) * mask
        ours = ours - (ratio * batch.advantages[:, None] * old).sum() / facts.tokens
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@given(batches())
def test_grpo_is_trls(trainer: Any, batch: Batch) -> None:
    compare("grpo", batch, trainer, loss_type="grpo")


@given(batches())
def test_dr_grpo_is_trls(trainer: Any, batch: Batch) -> None:
    compare("dr_grpo", batch, trainer, loss_type="dr_grpo")


@given(batches())
def test_dapo_is_trls(trainer: Any, batch: Batch) -> None:
    compare("dapo", batch, trainer, loss_type="dapo")


@at_most(30)
@given(batches())
def test_dapo_with_a_reference_is_trls(trainer: Any, batch: Batch) -> None:
    compare("dapo", batch, trainer, loss_type="dapo", beta=0.1)


@given(batches())
def test_cispo_is_trls(trainer: Any, batch: Batch) -> None:
    compare("cispo", batch, trainer, loss_type="cispo", epsilon_high=5.0)


@given(batches())
def test_gspo_is_trls_sequence_level(trainer: Any, batch: Batch) -> None:
    compare("gspo", batch, trainer, loss_type="grpo", importance_sampling_level="sequence")


@given(batches())
def test_gmpo_is_trls_experimental_one(trainer: Any, batch: Batch) -> None:
    from trl.experimental.gmpo import GMPOTrainer

    held = batch.x.abs()
    x = torch.where((held - 0.4).abs() < 1e-9, 0.41, batch.x)
    compare("gmpo", Batch(x, batch.mask, batch.advantages), GMPOTrainer, epsilon_low=0.4, epsilon_high=0.4)
