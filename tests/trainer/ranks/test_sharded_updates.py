"""What happens on one of the ranks that hold a model: memory runs out, numbers break, a weight is unused."""

import importlib.util
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support import sharded_jobs
from tests.support.extras import WITHOUT_TORCHAO
from tests.support.rank_crew import Crew, crew
from trainer.ranks.meeting import BEYOND_S, CALL_S

pytestmark = pytest.mark.slow


def test_memory_that_runs_out_ends_the_job_with_a_smaller_number() -> None:
    """Another attempt would come to the same number by itself."""
    two = crew(2)
    try:
        two.ask(sharded_jobs.run_out_of_memory)
        own, other = two.answer(1), two.answer(0)
    finally:
        two.close()
    assert (own.code, own.retryable) == (other.code, other.retryable) == ("out_of_memory", False)
    assert other.text == f"rank 1: {own.text}"
    assert "micro-batches of 16 tokens" in own.text


def test_every_rank_finds_the_gradient_that_one_rank_holds(two_ranks: Crew) -> None:
    first, second = two_ranks.have(sharded_jobs.broken_gradient)
    assert "(1 of " in first
    assert "first in model.layers.1.mlp.down_proj.weight" in first
    assert second == first


def test_a_weight_that_one_rank_does_not_use_has_the_others_gradient(two_ranks: Crew) -> None:
    assert max(two_ranks.have(sharded_jobs.gradients_of_a_part)) < 1e-5


def test_a_compiler_that_fails_leaves_the_model_as_it_was(two_ranks: Crew) -> None:
    assert max(two_ranks.have(sharded_jobs.compiled_in_vain)) < 1e-5


def test_calls_of_a_mesh_wait_as_long_as_all_others(two_ranks: Crew) -> None:
    limit = timedelta(seconds=CALL_S + BEYOND_S)
    assert two_ranks.have(sharded_jobs.limits_of_a_mesh) == [[limit, limit]] * 2


@pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason=WITHOUT_TORCHAO)
def test_moments_in_8_bits_go_to_another_number_of_ranks(two_ranks: Crew, tmp_path: Path) -> None:
    """Twice, each time within 1 % of a block's largest number."""
    for apart in two_ranks.have(sharded_jobs.reshard_8_bits, tmp_path):
        assert max(apart) < 0.02
