"""What happens on one rank of an update holds for all: broken numbers, memory that runs out, empty shares."""

from typing import Any

import pytest
import torch

from powermean.contracts.algorithms import Grpo, Pmpo
from powermean.contracts.models import LoraSpec
from tests.support import rank_jobs
from tests.support.rank_crew import Crew
from tests.support.rank_jobs import Case

pytestmark = pytest.mark.slow

CASES = {
    "float32": Case(),
    "kl": Case(Pmpo(beta=0.1)),
    "the sampler's log-probs": Case(Grpo(), old_policy="sampler"),
    "bfloat16 weights": Case(options={"bfloat16_weights": True}),
    "an adapter": Case(options={"lora": LoraSpec(rank=2, alpha=4)}),
    "gradient checkpointing": Case(options={"checkpointing": True}),
    "a group at a time": Case(micro_batch_groups=1),
    "broken rows of several ranks": Case(poisoned=(0, 9), minibatches=([0, 2], [1, 3]) * 2),
    "broken rows, scored first": Case(poisoned=(0, 9), minibatches=([0, 1], [2, 3]) * 2),
    "no spread": Case(minibatches=([1], [0, 2])),
    "a sharded model, broken rows and a group without spread": Case(
        poisoned=(0, 9), minibatches=([0, 2], [1, 3]) * 2, sharded=True
    ),
}


def close(found: Any, expected: Any, tolerance: float) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize("name", CASES)
def test_ranks_give_what_one_gives(name: str, four_ranks: Crew, two_ranks: Crew) -> None:
    """Weights after several steps, and all that is recorded of them."""
    case = CASES[name]
    expected, tolerance = rank_jobs.case(rank_jobs.ALONE, case), 1e-5
    if "bfloat16_weights" in case.options:  # ratios of log-probs that are rounded are far apart
        expected, tolerance = {"weights": expected["weights"]}, 2**-7  # a last digit
    for ranks in (two_ranks, four_ranks):
        first, *others = ranks.have(rank_jobs.case, case)
        for key, value in expected.items():
            close(first[key], value, tolerance)
        for other in others:
            assert torch.equal(other["weights"], first["weights"])


def test_every_rank_makes_room_for_an_engine_that_wakes_up(two_ranks: Crew) -> None:
    assert two_ranks.have(rank_jobs.make_room) == [1, 1]


@pytest.mark.parametrize("kind", [{}, {"bfloat16_weights": True}], ids=["float32", "bfloat16 weights"])
def test_memory_that_runs_out_on_a_rank_lowers_the_budget_of_all(kind: Any, two_ranks: Crew) -> None:
    """Once; bit for bit what the smaller one gives from the start."""
    whole: Any = {"minibatches": ([0, 1, 2, 3],) * 2, "an_epoch": 1, "may_lower": True, "options": kind}
    small, large = (Case(tokens=tokens, **whole) for tokens in (10, 20))
    expected = two_ranks.have(rank_jobs.case, small)
    found = two_ranks.have(rank_jobs.case, large, 1)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys()
        for key, value in theirs.items():
            assert torch.equal(
                torch.as_tensor(ours[key]).nan_to_num(7), torch.as_tensor(value).nan_to_num(7)
            ), key


def test_ranks_that_load_in_turns_do_so_one_after_the_other(two_ranks: Crew) -> None:
    first, second = two_ranks.have(rank_jobs.load_in_turns, 2)
    assert first[1] <= second[0]
