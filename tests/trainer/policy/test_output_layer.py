"""Log-probs and entropy in tiles equal those of all logits at once, in value and gradient."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.small_models import small_model
from trainer.policy import output_layer
from trainer.policy.output_layer import OutputLayer, Questions

VOCABULARY, SIZE = 30, 6


@st.composite
def cases(draw: st.DrawFn) -> tuple[OutputLayer, Tensor, Questions]:
    """Up to 9 hidden states, each asked about 1 to 3 tokens."""
    chance = torch.Generator().manual_seed(draw(st.integers(0, 10_000)))
    heads = draw(st.integers(1, 9))
    asked = [torch.randperm(VOCABULARY, generator=chance)[: draw(st.integers(1, 3))] for _ in range(heads)]
    counts = torch.tensor([len(tokens) for tokens in asked])
    layer = OutputLayer(
        weight=torch.randn(VOCABULARY, SIZE, generator=chance, dtype=torch.float64).requires_grad_(),
        bias=torch.randn(VOCABULARY, generator=chance, dtype=torch.float64).requires_grad_()
        if draw(st.booleans())
        else None,
        scale=draw(st.sampled_from([1.0, 0.3])),
        cap=draw(st.sampled_from([None, 2.0])),
        temperature=draw(st.sampled_from([1.0, 0.7])),
    )
    hidden = torch.randn(heads, SIZE, generator=chance, dtype=torch.float64).requires_grad_()
    questions = Questions(
        head=torch.arange(heads).repeat_interleave(counts),
        token=torch.cat(asked),
        before=torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)]),
    )
    return layer, hidden, questions


def at_once(layer: OutputLayer, hidden: Tensor, questions: Questions) -> tuple[Tensor, Tensor]:
    logits = hidden @ layer.weight.t()
    logits = (logits if layer.bias is None else logits + layer.bias) * layer.scale
    if layer.cap is not None:
        logits = layer.cap * torch.tanh(logits / layer.cap)
    log_softmax = (logits / layer.temperature).log_softmax(-1)
    entropy = -(log_softmax.exp() * log_softmax).sum(-1)
    return log_softmax[questions.head, questions.token], entropy


@given(case=cases(), rows=st.integers(1, 10))
def test_law_tiles_change_no_number_and_no_gradient(
    case: tuple[OutputLayer, Tensor, Questions], rows: int
) -> None:
    layer, hidden, questions = case
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(output_layer, "CPU_TILE_BYTES", rows * VOCABULARY * hidden.itemsize)
        found, entropy = layer.answer(hidden, questions, torch.float64, entropy=True)
        expected, exact = at_once(layer, hidden, questions)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(entropy, exact, rtol=1e-9, atol=1e-12)
        leaves = [leaf for leaf in (hidden, layer.weight, layer.bias) if leaf is not None]
        chance = torch.Generator().manual_seed(1)
        up, up_entropy = (
            torch.randn(len(one), generator=chance, dtype=torch.float64) for one in (found, exact)
        )
        for ours, theirs, given_up in (
            ([found], [expected], [up]),
            ([entropy], [exact], [up_entropy]),
            ([found, entropy], [expected, exact], [up, up_entropy]),
        ):
            here = torch.autograd.grad(ours, leaves, given_up, retain_graph=True)
            there = torch.autograd.grad(theirs, leaves, given_up, retain_graph=True)
            for one, other in zip(here, there, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
@given(case=cases())
def test_law_gradcheck(case: tuple[OutputLayer, Tensor, Questions]) -> None:
    layer, hidden, questions = case

    def log_probs(states: Tensor, weight: Tensor) -> Tensor:
        return replace(layer, weight=weight).answer(states, questions, torch.float64, entropy=False)[0]

    assert torch.autograd.gradcheck(log_probs, (hidden, layer.weight), atol=1e-6)


@pytest.mark.slow
@settings(max_examples=10)
@given(case=cases())
def test_law_gradcheck_of_the_entropy(case: tuple[OutputLayer, Tensor, Questions]) -> None:
    layer, hidden, questions = case

    def entropy(states: Tensor, weight: Tensor) -> Tensor:
        found = replace(layer, weight=weight).answer(states, questions, torch.float64, entropy=True)[1]
        assert found is not None
        return found

    assert torch.autograd.gradcheck(entropy, (hidden, layer.weight), atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("config", ["tied", "untied", "scaled", "divided", "capped", "gpt2"])
def test_what_models_do_to_their_logits_is_done(
    config: str, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cohere scales, Granite divides, Gemma soft-caps: equal to the model's own logits, gradients too."""
    monkeypatch.setattr(output_layer, "CPU_TILE_BYTES", 3 * 12 * 8)  # three states a tile
    model = small_model(config, torch.float64)
    ids = torch.tensor([[1, 5, 2, 7, 7, 3, 9, 4]])
    states, tokens = torch.arange(7).repeat_interleave(2), torch.arange(14) % 12
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1] / temperature
    every = logits.log_softmax(-1)
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, :-1]
    found, entropy = OutputLayer.of(model, temperature).answer(
        hidden, Questions(states, tokens, 2 * torch.arange(8)), torch.float64, entropy=True
    )
    expected = every[states, tokens]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(entropy, -(every.exp() * every).sum(-1).detach(), rtol=1e-9, atol=1e-12)
    up = torch.randn(found.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    weights = dict(model.named_parameters())
    both = (torch.autograd.grad(one, weights.values(), up) for one in (found, expected))
    for name, ours, theirs in zip(weights, *both, strict=True):
        assert float((ours - theirs).abs().max()) <= 1e-9 * float(theirs.abs().max()), name


def test_a_frozen_matrix_gets_no_gradient() -> None:
    weight = torch.randn(VOCABULARY, SIZE)
    hidden = torch.randn(2, SIZE, requires_grad=True)
    questions = Questions(torch.arange(2), torch.arange(2), torch.arange(3))
    found, _ = OutputLayer(weight, None, 1.0, None, 1.0).answer(
        hidden, questions, torch.float32, entropy=False
    )
    found.sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None


def test_bfloat16_products_have_float32_sums() -> None:
    """Over 50,000 tokens a bfloat16 sum would be off by far more."""
    weight, hidden = torch.randn(50_000, 16) / 4, torch.randn(8, 16)
    questions = Questions(torch.arange(8), torch.arange(8), torch.arange(9))
    layer = OutputLayer(weight.bfloat16().float(), None, 1.0, None, 1.0)
    found, entropy = layer.answer(hidden.bfloat16(), questions, torch.bfloat16, entropy=True)
    logits = (hidden.bfloat16() @ weight.bfloat16().t()).double()
    exact = logits.log_softmax(-1)
    assert found.dtype == torch.float32
    assert entropy is not None
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact[torch.arange(8), torch.arange(8)], rtol=0, atol=1e-5)
    torch.testing.assert_close(entropy.double(), -(exact.exp() * exact).sum(-1), rtol=0, atol=1e-5)
