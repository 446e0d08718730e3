"""KL estimates: to the reference policy, and between the engine and the trainer."""

from math import exp

import pytest
import torch
from hypothesis import given

from tests.trainer.objectives.objective_batches import Batch, batches
from trainer.objectives import k3, kl_penalty, sampling_kl


@given(batches(largest=50.0))
def test_law_k3_is_never_negative_and_0_on_padding(batch: Batch) -> None:
    found = k3(batch.x, torch.zeros_like(batch.x), batch.mask)
    assert (found >= 0).all()
    assert (found[~batch.mask] == 0).all()
    assert torch.isfinite(found).all()


def test_k3_by_hand_and_its_gradient() -> None:
    log_probs = torch.tensor([[-1.0, -2.0]], dtype=torch.float64, requires_grad=True)
    reference = torch.tensor([[-1.5, -2.0]], dtype=torch.float64)
    mask = torch.ones(1, 2, dtype=torch.bool)
    penalty = kl_penalty(log_probs, reference, mask, beta=0.1, total_tokens=4)
    assert penalty.item() == pytest.approx(0.1 * (exp(-0.5) - 1 + 0.5) / 4)
    (gradient,) = torch.autograd.grad(penalty, log_probs)
    torch.testing.assert_close(
        gradient, torch.tensor([[0.1 * (1 - exp(-0.5)) / 4, 0.0]], dtype=torch.float64)
    )


@given(batches(rows=(2, 5)))
def test_law_the_penalty_adds_over_micro_batches(batch: Batch) -> None:
    total = int(batch.mask.sum())
    reference = torch.zeros_like(batch.x)
    whole = kl_penalty(batch.x, reference, batch.mask, 0.2, total)
    parts = [
        kl_penalty(batch.x[i : i + 1], reference[i : i + 1], batch.mask[i : i + 1], 0.2, total)
        for i in range(len(batch.x))
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole)


def test_sampling_kl_is_untruncated_and_undefined_without_tokens() -> None:
    old, sampler = torch.tensor([[0.0, -3.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    mask = torch.tensor([[True, True], [False, False]])
    found = sampling_kl(old, sampler, mask)
    assert found[0].item() == pytest.approx((exp(-3) + 2) / 2)
    assert torch.isnan(found[1])
