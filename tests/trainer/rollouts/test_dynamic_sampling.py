"""Rounds of prompts until the batch is full of groups with spread; what did not come into it still counts."""

from collections.abc import Callable

import pytest
import torch

from powermean.contracts.algorithms import Dapo, Grpo
from powermean.contracts.rollout import Completion
from trainer.data import Problem
from trainer.objectives import build_algorithm
from trainer.rewards.grading import Grade
from trainer.rollouts.batching import collate
from trainer.rollouts.dynamic_sampling import GradedRollouts, fill_batch

PAD = 7


def rounds(*shares: list[float]) -> Callable[[int], GradedRollouts]:
    """Rounds of groups of two; `shares` has each group's second reward (the first is 0).

    A group's prompt is (round, place); completions of round r have r + 1 tokens, all r.
    """

    def sample_round(number: int) -> GradedRollouts:
        second = shares[number]
        one = Completion(
            token_ids=(number,) * (number + 1),
            logprobs=(-float(number),) * (number + 1),
            finish_reason="stop",
            weight_versions=(),
        )
        prompts = [(number, place) for place in range(len(second))]
        return GradedRollouts(
            problems=tuple(Problem(f"{number}.{place}", "", "") for place in range(len(second))),
            rollouts=collate(prompts, [(one, one)] * len(second), PAD),
            texts=tuple(f"{number}.{place}.{j}" for place in range(len(second)) for j in (0, 1)),
            grades=tuple(Grade(reward) for share in second for reward in (0.0, share)),
        )

    return sample_round


def test_a_full_first_round_is_the_batch_as_it_is() -> None:
    batch, facts = fill_batch(rounds([1, 1, 1]), build_algorithm(Dapo()), PAD)
    assert [problem.id for problem in batch.problems] == ["0.0", "0.1", "0.2"]
    assert (facts.rounds, facts.groups_dropped, facts.tokens) == (1, 0, 6)


def test_further_rounds_fill_the_batch_and_the_surplus_is_dropped() -> None:
    batch, facts = fill_batch(rounds([0, 1, 0], [0, 1, 0], [1, 1, 0]), build_algorithm(Dapo()), PAD)
    assert [problem.id for problem in batch.problems] == ["0.1", "1.1", "2.0"]
    assert batch.rollouts.prompts == ((0, 1), (1, 1), (2, 0))
    assert batch.texts == ("0.1.0", "0.1.1", "1.1.0", "1.1.1", "2.0.0", "2.0.1")
    assert batch.rewards.tolist() == [0, 1] * 3
    assert batch.rollouts.tokens[::2].tolist() == [[0, PAD, PAD], [1, 1, PAD], [2, 2, 2]]
    assert batch.rollouts.lengths.tolist() == [1, 1, 2, 2, 3, 3]
    assert batch.rollouts.sampler_log_probs[3].tolist() == [-1, -1, 0]
    assert len(batch.rollouts.versions) == 6
    assert (facts.rounds, facts.groups_dropped) == (3, 6)
    assert facts.tokens == 6 * (1 + 2 + 3)
    assert facts.rewards.tolist() == [[0, s] for s in (0, 1, 0, 0, 1, 0, 1, 1, 0)]


def test_at_the_limit_the_batch_keeps_its_size_and_the_filter_empties_the_rest() -> None:
    algorithm = build_algorithm(Dapo(sampling_rounds=2))
    batch, facts = fill_batch(rounds([0, 0, 0], [0, 0, 1]), algorithm, PAD)
    assert [problem.id for problem in batch.problems] == ["0.0", "0.1", "1.2"]
    assert algorithm.keep(batch.rewards, batch.rollouts.group).tolist() == [False] * 4 + [True] * 2
    assert (facts.rounds, facts.groups_dropped) == (2, 5)


@pytest.mark.parametrize(("spec", "dropped"), [(Grpo(), 0), (Dapo(sampling_rounds=1), 2)])
def test_one_round_is_all_that_others_take(spec: Grpo | Dapo, dropped: int) -> None:
    batch, facts = fill_batch(rounds([0, 1, 0]), build_algorithm(spec), PAD)
    assert len(batch.problems) == 3
    assert (facts.rounds, facts.groups_dropped) == (1, dropped)


def test_the_batch_does_not_depend_on_when_rounds_were_joined() -> None:
    """Group by group: a step of many rounds holds no more than two rounds of completions at a time."""
    chance = torch.Generator().manual_seed(0)
    shares = (torch.rand(20, 8, generator=chance) < 0.15).double().tolist()
    batch, facts = fill_batch(rounds(*shares), build_algorithm(Dapo(sampling_rounds=20)), PAD)
    spread = [f"{r}.{place}" for r, row in enumerate(shares) for place, share in enumerate(row) if share]
    assert 2 < facts.rounds < 20
    assert [problem.id for problem in batch.problems] == spread[:8]
