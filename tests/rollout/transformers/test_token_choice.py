"""Draws map to tokens as the inverse of the cumulative distribution, exactly."""

import pytest
import torch

from rollout.engine import EngineError
from rollout.transformers.token_choice import choose

PROBABILITIES = torch.tensor([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
NEXT_BELOW_1 = 1 - 2**-53


def _tokens(draws: list[float], temperature: float = 1.0) -> list[int]:
    logits = PROBABILITIES.log().expand(len(draws), -1)
    return choose(logits, temperature, torch.tensor(draws, dtype=torch.float64)).tokens.tolist()


def test_draws_fall_into_the_tokens_shares() -> None:
    assert _tokens([0.0, 0.2499, 0.2501, 0.7499, 0.7501, NEXT_BELOW_1]) == [1, 1, 3, 3, 4, 4]


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


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_logits_that_are_no_distribution_are_an_error(bad: float) -> None:
    logits = torch.zeros(2, 3)
    logits[1, 1] = bad
    with pytest.raises(EngineError, match="not finite") as error:
        choose(logits, 1.0, torch.zeros(2, dtype=torch.float64))
    assert error.value.code == "not_finite"
