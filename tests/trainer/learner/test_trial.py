"""The tokens of a micro-batch: from what two passes took."""

import pytest

from tests.support.learners import learner
from trainer.defaults import CPU_TOKENS
from trainer.learner.trial import MOST_TOKENS, SHARE, TRIED, fitting_tokens, micro_batch_tokens

MIB = 1 << 20


def test_a_cpu_needs_no_trial() -> None:
    assert micro_batch_tokens(learner().policy) == CPU_TOKENS


@pytest.mark.parametrize("anyway", [0, 500 * MIB])
def test_a_pass_of_so_many_tokens_takes_its_share(anyway: int) -> None:
    small, large = (anyway + MIB * size for size in TRIED)
    free = 40_000 * MIB
    assert fitting_tokens(small, large, free) == (SHARE * free - anyway) // MIB


def test_there_is_a_most_and_a_least() -> None:
    """A trial whose second pass took no more than its first: memory of another process came free."""
    assert fitting_tokens(5 * MIB, 5 * MIB, 1 << 40) == MOST_TOKENS
    assert fitting_tokens(MIB * TRIED[0], MIB * TRIED[1], 10 * MIB) == TRIED[0]
