"""Prompts pass through the model as trees of tokens, with the logits and caches that they have alone."""

import random
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from rollout.transformers import prefill as module
from rollout.transformers.prefill import prefill

CPU = torch.device("cpu")
PROMPTS = ((1, 2, 3, 4), (1, 2, 3), (5,), (1, 2, 7, 3, 4, 9), (1,), (6, 2, 3), (1, 2, 3, 4, 5))


@pytest.fixture
def model(tiny_folder: Path) -> LlamaForCausalLM:
    return LlamaForCausalLM.from_pretrained(tiny_folder).double().eval()


def _is_as_alone(model: LlamaForCausalLM, prompts: tuple[tuple[int, ...], ...]) -> None:
    with torch.inference_mode():
        found = prefill(model, prompts, CPU)
        for place, prompt in enumerate(prompts):
            alone = model(input_ids=torch.tensor([prompt]), use_cache=True)
            torch.testing.assert_close(found.logits[place], alone.logits[0, -1], rtol=0, atol=1e-10)
            gap = int(found.gaps[place])
            assert gap == max(map(len, prompts)) - len(prompt)
            for number, layer in enumerate(alone.past_key_values.layers):
                keys, values = found.rows(number, torch.tensor([place]))
                torch.testing.assert_close(keys[:, :, gap:], layer.keys, rtol=0, atol=1e-10)
                torch.testing.assert_close(values[:, :, gap:], layer.values, rtol=0, atol=1e-10)


@pytest.mark.parametrize("most", [1, 4, 7, 512])
def test_each_prompt_is_as_alone(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """However the tree is cut: at 1 each prompt is a tree of its own."""
    monkeypatch.setitem(module.MOST_TOKENS, "cpu", most)
    _is_as_alone(model, PROMPTS)
    _is_as_alone(model, PROMPTS[::-1])


@pytest.mark.slow
def test_random_prompts_are_as_alone(model: LlamaForCausalLM, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(0)
    for _ in range(20):
        monkeypatch.setitem(module.MOST_TOKENS, "cpu", chance.choice([3, 10, 512]))
        prompts = {
            tuple(chance.randrange(1, 4) for _ in range(chance.randint(1, 9)))
            for _ in range(chance.randint(1, 9))
        }
        _is_as_alone(model, tuple(prompts))


def test_a_shared_beginning_passes_once(model: LlamaForCausalLM) -> None:
    passed = []
    model.model.embed_tokens.register_forward_hook(lambda _, given, __: passed.append(given[0].tolist()))
    with torch.inference_mode():
        prefill(model, ((1, 2, 3, 4), (1, 2, 3, 5), (1, 2, 3), (6,)), CPU)
    assert passed == [[[1, 2, 3, 4, 5, 6]]]
