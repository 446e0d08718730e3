"""The tokens of a micro-batch: from what two passes took."""

import pytest
import torch

from tests.support.learners import learner
from trainer.defaults import CPU_TOKENS
from trainer.learner.trial import (
    MOST_TOKENS,
    SHARE,
    TRIED,
    fitting_tokens,
    micro_batch_tokens,
    peak_bytes,
)

MIB = 1 << 20


def test_a_cpu_needs_no_trial() -> None:
    one = learner()
    assert micro_batch_tokens(one.policy, one.optimizer, "float32") == CPU_TOKENS


@pytest.mark.parametrize("kind", [{}, {"bfloat16_weights": True}], ids=["float32", "bfloat16 weights"])
def test_a_trial_leaves_no_gradient_to_the_first_update(
    kind: dict[str, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of bfloat16 weights are at their masters."""
    one, held = learner(**kind), iter([10 * MIB, 70 * MIB])
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: next(held))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _device: next(held))
    stepped = [weight for group in one.optimizer.param_groups for weight in group["params"]]
    seen: list[bool] = []
    zero_grad = one.optimizer.zero_grad

    def watched(*, set_to_none: bool) -> None:
        seen.append(all(weight.grad is not None for weight in stepped))
        zero_grad(set_to_none=set_to_none)

    monkeypatch.setattr(one.optimizer, "zero_grad", watched)
    assert peak_bytes(one.policy, one.optimizer, 512) == 60 * MIB
    assert seen == [True]
    assert all(weight.grad is None for weight in (*stepped, *one.policy.model.parameters()))


@pytest.mark.parametrize("anyway", [0, 500 * MIB])
def test_a_pass_of_so_many_tokens_takes_its_share(anyway: int) -> None:
    small, large = (anyway + MIB * size for size in TRIED)
    free = 40_000 * MIB
    assert fitting_tokens(small, large, free) == (SHARE * free - anyway) // MIB


def test_there_is_a_most_and_a_least() -> None:
    """A trial whose second pass took no more than its first: memory of another process came free."""
    assert fitting_tokens(5 * MIB, 5 * MIB, 1 << 40) == MOST_TOKENS
    assert fitting_tokens(MIB * TRIED[0], MIB * TRIED[1], 10 * MIB) == TRIED[0]
