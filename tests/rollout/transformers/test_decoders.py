"""Both ways of decoding give each completion what a model without cache and batch gives it."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import LlamaForCausalLM

from rollout.transformers.attention import decoding_attention
from rollout.transformers.decoding import Decoder, Sampled, sample_batch
from rollout.transformers.slot_decoder import SlotDecoder
from rollout.transformers.slots import STRIDE, Slots, bucket
from rollout.transformers.stopping import Stopping
from rollout.transformers.token_choice import choose
from rollout.transformers.tree_decoder import TreeDecoder
from tests.support.tiny_model import char_tokenizer

Prompts = Sequence[tuple[int, ...]]
Make = Callable[[Prompts, float, int], Decoder]

PROMPTS = ((4, 5, 6), (4, 5, 6), (4, 5, 6), (4, 5), (7,), (4, 5, 6, 8, 9), (4, 5, 6), (7,), (4, 5, 7)) * 3
NEW = 40  # two strides and a half
ENDS = frozenset({1, 2})


@pytest.fixture
def model(tiny_folder: Path) -> Iterator[LlamaForCausalLM]:
    """In float64, so that the rows of a batch can't change each other's log-probs, which are float32."""
    model = LlamaForCausalLM.from_pretrained(tiny_folder).double().eval()
    with decoding_attention(model, grouped=True):
        yield model


@pytest.fixture(params=["tree", "slots"])
def make(request: pytest.FixtureRequest, model: LlamaForCausalLM) -> Make:
    slots = Slots(model, graphs=False)

    def make(prompts: Prompts, temperature: float, new: int) -> Decoder:
        if request.param == "tree":
            return TreeDecoder(model, prompts, temperature, plain=True)
        return SlotDecoder(model, slots, prompts, temperature, new)

    return make


def _draws(rows: int, new: int = NEW, seed: int = 0) -> Tensor:
    return torch.rand(rows, new, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _sample(
    decoder: Decoder, draws: Tensor, ends: frozenset[int] = ENDS, stop: Sequence[str] = ()
) -> list[Sampled]:
    return sample_batch(decoder, draws, Stopping(char_tokenizer(), ends, stop), Event())


@torch.inference_mode()
def _alone(model: LlamaForCausalLM, prompt: tuple[int, ...], draws: Tensor, temperature: float) -> Sampled:
    """One completion, by a pass over all its tokens for each new one."""
    result = Sampled()
    for draw in draws:
        logits = model(input_ids=torch.tensor([[*prompt, *result.token_ids]])).logits[:, -1]
        chosen = choose(logits, temperature, draw[None])
        result.token_ids.append(int(chosen.tokens))
        result.log_probs.append(float(chosen.log_probs))
        if result.token_ids[-1] in ENDS:
            result.stopped = True
            break
    return result


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_completions_are_what_they_are_alone(model: LlamaForCausalLM, make: Make, temperature: float) -> None:
    draws = _draws(len(PROMPTS))
    found = _sample(make(PROMPTS, temperature, NEW), draws)
    lengths = set()
    for prompt, row, result in zip(PROMPTS, draws, found, strict=True):
        expected = _alone(model, prompt, row, temperature)
        assert result.token_ids == expected.token_ids
        assert result.log_probs == pytest.approx(expected.log_probs, abs=1e-6)
        assert result.stopped == expected.stopped
        lengths.add(len(result.token_ids))
    assert temperature == 0 or len(lengths) > 4  # so that rows left at different times


@pytest.mark.slow
def test_both_ways_give_the_same(model: LlamaForCausalLM) -> None:
    draws = _draws(len(PROMPTS))
    for stop in ((), ("12", "3\n", "9")):
        tree = _sample(TreeDecoder(model, PROMPTS, 1.0, plain=True), draws, stop=stop)
        slots = _sample(SlotDecoder(model, Slots(model, graphs=False), PROMPTS, 1.0, NEW), draws, stop=stop)
        assert [one.token_ids for one in tree] == [one.token_ids for one in slots]
        assert [one.stopped for one in tree] == [one.stopped for one in slots]


@pytest.mark.slow
def test_slots_go_from_request_to_request(model: LlamaForCausalLM) -> None:
    """Larger, smaller, of another shape; what an earlier request left in them does not show."""
    slots = Slots(model, graphs=False)
    for seed, (rows, new) in enumerate([(9, 5), (27, 40), (3, 17), (12, 50), (1, 1), (27, 40)]):
        prompts, draws = PROMPTS[:rows], _draws(rows, new, seed)
        again = _sample(SlotDecoder(model, slots, prompts, 1.0, new), draws)
        fresh = _sample(SlotDecoder(model, Slots(model, graphs=False), prompts, 1.0, new), draws)
        assert again == fresh


def test_only_distinct_histories_pass_through_the_model(model: LlamaForCausalLM) -> None:
    passed: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, given, __: passed.append(len(given[0])))
    draws = _draws(64, 8)
    found = _sample(TreeDecoder(model, ((4, 5, 6), (4, 5)) * 32, 1.0, plain=True), draws)
    histories = [
        {
            (row % 2, *one.token_ids[: place + 1])
            for row, one in enumerate(found)
            if len(one.token_ids) > place + 1
        }
        for place in range(7)
    ]
    assert passed == [1, *map(len, filter(None, histories))]  # the prompts are a tree of one row
    assert passed[1] < 30
    passed.clear()
    _sample(TreeDecoder(model, ((4, 5, 6),) * 50, 0.0, plain=True), _draws(50, 8), ends=frozenset())
    assert passed == [1] * 8  # greedy completions are all one


@pytest.mark.slow
def test_slots_shrink_when_half_the_rows_have_ended(model: LlamaForCausalLM) -> None:
    passed: list[int] = []
    model.model.embed_tokens.register_forward_hook(lambda _, given, __: passed.append(len(given[0])))
    _sample(SlotDecoder(model, Slots(model, graphs=False), ((4, 5, 6),) * 60, 1.0, 96), _draws(60, 96))
    sizes = list(dict.fromkeys(passed[1:]))
    assert sizes[0] == 64
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] <= 16
    steps = len(passed) - 1
    assert (steps + 1) % STRIDE == 0  # the first token of all is the prompts' pass'


@pytest.mark.slow
def test_a_step_asks_nothing_of_the_device(model: LlamaForCausalLM) -> None:
    """Fake tensors have no values to read, as a GPU has none to give while a graph is captured."""
    slots = Slots(model, graphs=False)
    with torch.inference_mode():
        SlotDecoder(model, slots, ((4, 5, 6), (4, 5)), 1.0, NEW).advance(_draws(2, 4))
        with FakeTensorMode(allow_non_fake_inputs=True):
            slots.step(8, 1.0)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a graph can be captured")
def test_without_cuda_graphs_it_goes_on_and_says_so_once(
    model: LlamaForCausalLM, caplog: pytest.LogCaptureFixture
) -> None:
    draws = _draws(len(PROMPTS))
    failing, plain = Slots(model, graphs=True), Slots(model, graphs=False)  # here no graph can be captured
    for _ in range(2):
        assert _sample(SlotDecoder(model, failing, PROMPTS, 1.0, NEW), draws) == _sample(
            SlotDecoder(model, plain, PROMPTS, 1.0, NEW), draws
        )
    assert [record.message[:40] for record in caplog.records] == ["decoding without CUDA graphs, which is s"]


def test_buckets_are_few_and_close() -> None:
    sizes = [bucket(count, 8) for count in range(1, 200)]
    assert sorted(set(sizes)) == [8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256]
    assert all(count <= size < max(1.5 * count + 1, 9) for count, size in enumerate(sizes, start=1))
