"""Models whose configs come with us have the weights that their cards say."""

import pytest

from trainer.preflight.model_facts import known_configs, of_name

BILLIONS = {
    "Qwen/Qwen2.5-0.5B": 0.494,
    "Qwen/Qwen2.5-7B-Instruct": 7.616,
    "Qwen/Qwen2.5-Math-1.5B": 1.544,
    "Qwen/Qwen3-0.6B": 0.596,
    "Qwen/Qwen3-8B": 8.191,
    "Qwen/Qwen3-32B": 32.762,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BILLIONS)
def test_numbers_of_weights(name: str) -> None:
    model = of_name(name)
    assert model is not None
    assert model.numbers / 1e9 == pytest.approx(BILLIONS[name], abs=6e-4)


def test_others_are_not_known() -> None:
    assert of_name("nobody/nothing") is None
    assert BILLIONS.keys() <= known_configs().keys()
