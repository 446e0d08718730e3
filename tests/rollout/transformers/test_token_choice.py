"""Draws map to tokens as the inverse of the cumulative distribution, exactly."""

import pytest
import torch

from rollout.transformers.token_choice import choose

PROBABILITIES = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
NEXT_BELOW_1 = 1 - 2**-53


def _tokens(draws: list[float], temperature: float = 1.0) -> list[int]:
    logits = PROBABILITIES.log().expand(len(draws), -1)
    return choose(logits, temperature, torch.tensor(draws, dtype=torch.float64)).tokens.tolist()


def test_draws_fall_into_the_tokens_shares() -> None:
    assert _tokens([0.0, 0.2499, 0.2501, 0.7499, 0.7501, NEXT_BELOW_1]) == [1, 1, 3, 3, 4, 4]


@pytest.mark.slow
def test_tokens_of_probability_zero_are_never_drawn() -> None:
    draws = torch.linspace(0, NEXT_BELOW_1, 10_001, dtype=torch.float64).tolist()
    assert set(_tokens(draws)) == {1, 3, 4}


def test_temperature_shapes_the_distribution_and_its_log_probs() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5]]).expand(3, -1)
    draws = torch.tensor([0.0, 0.5, NEXT_BELOW_1], dtype=torch.float64)
    for temperature in (0.5, 1.0, 3.0):
        chosen = choose(logits, temperature, draws)
        expected = (logits / temperature).log_softmax(-1).gather(-1, chosen.tokens[:, None])[:, 0]
        torch.testing.assert_close(chosen.log_probs, expected)
    greedy = choose(logits, 0, draws)
    assert greedy.tokens.tolist() == [1, 1, 1]
    torch.testing.assert_close(greedy.log_probs, logits.log_softmax(-1)[:, 1])


def test_low_precision_logits_are_normalised_in_float32() -> None:
    logits = torch.randn(5, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    chosen = choose(logits, 1.0, torch.full((5,), 0.3, dtype=torch.float64))
    expected = logits.double().log_softmax(-1).gather(-1, chosen.tokens[:, None])[:, 0]
    assert chosen.log_probs.dtype == torch.float32
    torch.testing.assert_close(chosen.log_probs.double(), expected, atol=1e-5, rtol=0)


def test_many_rows_are_chosen_as_few_are() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(150, 30, generator=generator)
    draws = torch.rand(150, generator=generator, dtype=torch.float64)
    together = choose(logits, 1.0, draws)
    alone = [choose(logits[i : i + 1], 1.0, draws[i : i + 1]) for i in range(150)]
    assert together.tokens.tolist() == [int(one.tokens) for one in alone]


@pytest.mark.parametrize("temperature", [1.0, 0.0])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_logits_that_are_no_distribution_show_in_the_log_prob(bad: float, temperature: float) -> None:
    logits = torch.zeros(2, 1300)
    logits[1] = bad
    logits[1, 700:] = torch.tensor(bad)
    chosen = choose(logits, temperature, torch.full((2,), 0.9, dtype=torch.float64))
    assert chosen.log_probs.isfinite().tolist() == [True, False]
    assert 0 <= int(chosen.tokens.min()) <= int(chosen.tokens.max()) < 1300  # nothing is read out of bounds


def test_several_draws_come_from_one_row() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(70, 2000, generator=generator)
    rows = torch.randint(70, (300,), generator=generator)
    draws = torch.rand(300, generator=generator, dtype=torch.float64)
    shared, alone = choose(logits, 0.7, draws, rows), choose(logits[rows], 0.7, draws)
    assert torch.equal(shared.tokens, alone.tokens)
    assert torch.equal(shared.log_probs, alone.log_probs)


@pytest.mark.parametrize("vocabulary", [1, 2, 511, 512, 513, 1024, 5000])
def test_the_last_token_of_any_vocabulary_is_within_reach(vocabulary: int) -> None:
    """Whatever the vocabulary lacks of a whole block is never drawn."""
    logits = torch.zeros(3, vocabulary)
    middle = (vocabulary // 2 + 0.5) / vocabulary
    draws = torch.tensor([0.0, middle, NEXT_BELOW_1], dtype=torch.float64)
    assert choose(logits, 1.0, draws).tokens.tolist() == [0, vocabulary // 2, vocabulary - 1]


@pytest.mark.slow
def test_every_tokens_share_of_the_draws_is_its_probability() -> None:
    """Measured exactly, by bisection for the first draw that gives each token or a later one."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1300, generator=generator) * 4
    logits[torch.randperm(1300, generator=generator)[:200]] = -torch.inf
    low, high = torch.zeros(1300, dtype=torch.float64), torch.ones(1300, dtype=torch.float64)
    for _ in range(60):
        middle = (low + high) / 2
        later = choose(logits[None], 1.0, middle, torch.zeros(1300, dtype=torch.int64)).tokens
        reached = later >= torch.arange(1300)
        low, high = torch.where(reached, low, middle), torch.where(reached, middle, high)
    shares = torch.cat([high, torch.ones(1, dtype=torch.float64)]).diff()
    probabilities = logits.double().softmax(-1)
    assert bool((shares[probabilities == 0].abs() < 1e-15).all())
    torch.testing.assert_close(shares, probabilities, rtol=2e-6, atol=1e-15)
    assert float(probabilities[probabilities > 0].min()) < 1e-9  # small ones have their share too


@pytest.mark.slow
def test_frequencies_are_probabilities() -> None:
    """Chi-square over the likelier tokens of 700, 20,000 draws."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 700, generator=generator) * 2
    draws = torch.rand(20_000, generator=generator, dtype=torch.float64)
    tokens = choose(logits, 1.0, draws, torch.zeros(len(draws), dtype=torch.int64)).tokens
    expected = logits[0].double().softmax(-1) * len(draws)
    found = torch.bincount(tokens, minlength=700)
    likely = expected > 10
    chi_square = float(((found - expected)[likely] ** 2 / expected[likely]).sum())
    free = int(likely.sum())
    assert abs(chi_square - free) < 5 * (2 * free) ** 0.5
