"""The transformers engine samples from exactly the model's distribution, whatever shares a batch."""

import json
import shutil
from pathlib import Path
from threading import Event

import pytest
import torch
from pydantic import ValidationError
from transformers import LlamaForCausalLM, MistralConfig, MistralForCausalLM

from powermean.contracts.rollout import Completion, GenerateRequest, GenerateResponse, Sampling
from rollout.engine import CancelledError, EngineError
from rollout.transformers.engine import TransformersEngine
from tests.support.tiny_engines import END_ID, MakeEngine, Publish, save_tiny_model
from tests.support.tiny_model import END, VOCABULARY

SHARED = "1+2=3\n"
UNEQUAL = (f"{SHARED}4+5=", f"{SHARED}12*11=", "7", f"{SHARED}4+5=", "1+", f"{SHARED}4+51=9-  7*1+2")


def _ids(text: str) -> tuple[int, ...]:
    return tuple(map(VOCABULARY.index, text))


def _text(completion: Completion) -> str:
    return "".join(VOCABULARY[token] for token in completion.token_ids)


def _request(
    prompts: tuple[str, ...] = UNEQUAL, n: int = 1, seed: int | None = 0, new: int = 8, **sampling: object
) -> GenerateRequest:
    values = {"max_new_tokens": new, "seed": seed, **sampling}
    return GenerateRequest(prompts=tuple(map(_ids, prompts)), n=n, sampling=Sampling.model_validate(values))


def _flat(response: GenerateResponse) -> list[Completion]:
    return [completion for group in response.completions for completion in group]


def _plain_log_probs(
    model: LlamaForCausalLM, prompt: tuple[int, ...], completion: Completion, temperature: float
) -> torch.Tensor:
    """By one forward pass over prompt and completion, without cache, padding or batch."""
    ids = torch.tensor([[*prompt, *completion.token_ids]])
    with torch.no_grad():
        log_softmax = (model(input_ids=ids).logits[0].double() / temperature).log_softmax(-1)
    places = torch.arange(len(completion.token_ids)) + len(prompt) - 1
    return log_softmax[places, torch.tensor(completion.token_ids)]


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("prompts", [UNEQUAL, ("1+2=",), ("1+2=", "1+2=", "3+4=")])
def test_log_probs_are_those_of_a_plain_forward_pass(
    engine: TransformersEngine, tiny_folder: Path, temperature: float, prompts: tuple[str, ...]
) -> None:
    request = _request(prompts, n=3, temperature=temperature)
    response = engine.generate(request, Event())
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    for prompt, group in zip(request.prompts, response.completions, strict=True):
        assert len(group) == 3
        for completion in group:
            expected = _plain_log_probs(model, prompt, completion, temperature)
            torch.testing.assert_close(
                torch.tensor(completion.logprobs, dtype=torch.float64), expected, atol=1e-4, rtol=0
            )


@pytest.mark.slow
def test_neither_neighbours_nor_cuts_change_a_completion(
    make_engine: MakeEngine, engine: TransformersEngine
) -> None:
    request = _request(n=4)
    together = _flat(engine.generate(request, Event()))
    one_by_one = _flat(make_engine(max_batch_tokens=1).generate(request, Event()))
    in_threes = _flat(make_engine(max_batch_tokens=100).generate(request, Event()))
    for other in (one_by_one, in_threes):
        assert [c.token_ids for c in other] == [c.token_ids for c in together]
        for mine, theirs in zip(together, other, strict=True):
            assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


def test_a_prompt_has_the_numbers_of_its_place_in_whatever_part_it_comes(engine: TransformersEngine) -> None:
    """So that equal seeds give equal completions, over however many engines a request is dealt out."""
    request = _request(n=3)
    together = engine.generate(request, Event()).completions
    for places in ((0, 2, 5), (1, 3), (4,)):
        part = request.model_copy(
            update={"prompts": tuple(request.prompts[place] for place in places), "places": places}
        )
        for place, group in zip(places, engine.generate(part, Event()).completions, strict=True):
            for mine, theirs in zip(group, together[place], strict=True):
                assert mine.token_ids == theirs.token_ids
                assert mine.logprobs == pytest.approx(theirs.logprobs, abs=1e-5)


@pytest.mark.parametrize("places", [(0,), (1, 1), (3, 2), (-1, 0), (0, 65536)])
def test_places_rise_and_each_prompt_has_one(places: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        GenerateRequest(prompts=((1,), (2,)), places=places, sampling=Sampling(max_new_tokens=1))


def test_frequencies_are_the_models_probabilities(engine: TransformersEngine, tiny_folder: Path) -> None:
    """First tokens of 2000 completions, prompts of unequal length in one batch: chi-square by prompt."""
    request = _request(("4+5=", f"{SHARED}7-1="), n=1000, new=1, temperature=1.3)
    response = engine.generate(request, Event())
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    for prompt, group in zip(request.prompts, response.completions, strict=True):
        with torch.no_grad():
            probabilities = (model(input_ids=torch.tensor([prompt])).logits[0, -1] / 1.3).softmax(-1)
        counts = torch.bincount(torch.tensor([c.token_ids[0] for c in group]), minlength=len(probabilities))
        expected = probabilities * len(group)
        common = expected >= 5
        chi_square = float(((counts - expected)[common] ** 2 / expected[common]).sum())
        assert chi_square < 3 * int(common.sum()) + 10  # far beyond the 99.9 % quantile
        assert probabilities.max() - probabilities.min() > 0.1  # so that a uniform choice would fail


@pytest.mark.slow
def test_equal_requests_give_equal_bits(make_engine: MakeEngine, engine: TransformersEngine) -> None:
    request = _request(n=4)
    first = engine.generate(request, Event()).completions
    engine.generate(_request(n=2, seed=None), Event())
    assert engine.generate(request, Event()).completions == first
    assert make_engine().generate(request, Event()).completions == first
    assert engine.generate(_request(n=4, seed=1), Event()).completions != first


def test_without_a_seed_completions_differ(engine: TransformersEngine) -> None:
    request = _request(n=8, seed=None)
    assert engine.generate(request, Event()).completions != engine.generate(request, Event()).completions


def test_greedy_takes_the_likeliest_token(engine: TransformersEngine, tiny_folder: Path) -> None:
    request = _request(("1+2=",), new=5, temperature=0)
    (completion,) = _flat(engine.generate(request, Event()))
    model, ids = LlamaForCausalLM.from_pretrained(tiny_folder), list(request.prompts[0])
    for token in completion.token_ids:
        with torch.no_grad():
            assert int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
        ids.append(token)
    expected = _plain_log_probs(model, request.prompts[0], completion, 1.0)
    assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.slow
def test_a_completion_ends_with_the_token_that_completes_a_stop_string(engine: TransformersEngine) -> None:
    stop = ("4", "=1", "\n")
    completions = _flat(engine.generate(_request(n=40, new=12, stop=stop), Event()))
    ends = {"stop": 0, "length": 0}
    for completion in completions:
        text = _text(completion)
        ends[completion.finish_reason] += 1
        assert len(completion.token_ids) == len(completion.logprobs)
        before = text.removesuffix(VOCABULARY[completion.token_ids[-1]])
        assert not any(ending in before for ending in (*stop, END))
        if completion.finish_reason == "length":
            assert len(completion.token_ids) == 12
            assert not text.endswith((*stop, END))
        else:
            assert text.endswith((*stop, END))
    assert all(count > 5 for count in ends.values())  # both happened


def test_the_last_token_may_still_complete_a_stop_string(engine: TransformersEngine) -> None:
    completions = _flat(engine.generate(_request(n=40, new=1, stop=tuple("0123456789")), Event()))
    for completion in completions:
        stopped = _text(completion).isdigit() or completion.token_ids == (END_ID,)
        assert completion.finish_reason == ("stop" if stopped else "length")
    assert {completion.finish_reason for completion in completions} == {"stop", "length"}


def test_the_end_token_in_a_prompt_is_a_token_like_any_other(
    engine: TransformersEngine, tiny_folder: Path
) -> None:
    """Here it has the pad token's id: a mask derived from ids would hide it."""
    prompts = ((*_ids("1+2="), END_ID, *_ids("3+4=")), _ids("7"))
    request = GenerateRequest(prompts=prompts, n=4, sampling=Sampling(max_new_tokens=4, seed=0))
    model = LlamaForCausalLM.from_pretrained(tiny_folder)
    for prompt, group in zip(prompts, engine.generate(request, Event()).completions, strict=True):
        for completion in group:
            expected = _plain_log_probs(model, prompt, completion, 1.0)
            assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.slow
def test_a_completion_ends_with_the_tokenizers_end_token(
    tmp_path: Path, tiny_folder: Path, make_engine: MakeEngine
) -> None:
    """The configs may name the end of a document alone, and a chat ends with the end of a turn."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    for name in ("config.json", "generation_config.json"):
        settings = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(settings | {"eos_token_id": 0}))
    completions = _flat(make_engine(folder).generate(_request(n=40, new=12), Event()))
    lasts = {one.token_ids[-1] for one in completions if one.finish_reason == "stop"}
    assert lasts == {0, END_ID}
    assert not any({0, END_ID} & set(one.token_ids[:-1]) for one in completions)


@pytest.mark.slow
def test_a_model_with_a_sliding_window_is_sampled_exactly(tmp_path: Path, make_engine: MakeEngine) -> None:
    folder = save_tiny_model(tmp_path / "model")
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        sliding_window=4,
        initializer_range=0.3,
        eos_token_id=END_ID,
        bos_token_id=None,
    )
    model = MistralForCausalLM(config).eval()
    model.save_pretrained(folder)
    request = _request(n=2)
    response = make_engine(folder).generate(request, Event())
    for prompt, group in zip(request.prompts, response.completions, strict=True):
        for completion in group:
            expected = _plain_log_probs(model, prompt, completion, 1.0)
            assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_cancelled_request_ends_early(engine: TransformersEngine) -> None:
    cancelled = Event()
    cancelled.set()
    with pytest.raises(CancelledError):
        engine.generate(_request(), cancelled)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (_request(("1" * 60,), new=5), "too_long", "60 tokens and 5 new ones exceed the context of 64"),
        (GenerateRequest(prompts=((1,), ()), sampling=Sampling(max_new_tokens=1)), "invalid", "no token"),
        (GenerateRequest(prompts=((999,),), sampling=Sampling(max_new_tokens=1)), "invalid", r"0\.\.18"),
        (GenerateRequest(prompts=((-1,),), sampling=Sampling(max_new_tokens=1)), "invalid", r"0\.\.18"),
    ],
)
def test_what_cannot_be_completed_is_refused(
    engine: TransformersEngine, request_: GenerateRequest, code: str, message: str
) -> None:
    with pytest.raises(EngineError, match=message) as error:
        engine.generate(request_, Event())
    assert error.value.code == code
    assert error.value.path is not None
    assert error.value.path.startswith("prompts.")


def test_a_full_context_is_no_refusal(engine: TransformersEngine) -> None:
    assert engine.generate(_request(("1" * 59,), new=5), Event()).completions


def test_diverged_weights_are_an_error(
    engine: TransformersEngine, tiny_folder: Path, stored_weights: Publish
) -> None:
    state = dict(LlamaForCausalLM.from_pretrained(tiny_folder).named_parameters())
    engine.publish(stored_weights({**state, "model.norm.weight": torch.full((64,), torch.nan)}))
    with pytest.raises(EngineError, match="not finite"):
        engine.generate(_request(), Event())


def test_weights_that_have_recovered_are_sampled_as_ever(
    engine: TransformersEngine, tiny_folder: Path, stored_weights: Publish
) -> None:
    state = dict(LlamaForCausalLM.from_pretrained(tiny_folder).named_parameters())
    before = engine.generate(_request(), Event()).completions
    keys = "model.layers.1.self_attn.k_proj.weight"
    engine.publish(stored_weights({**state, keys: torch.full_like(state[keys], torch.nan)}))
    with pytest.raises(EngineError, match="not finite"):
        engine.generate(_request(("1" * 50,)), Event())
    engine.publish(stored_weights(state, version=2))
    after = engine.generate(_request(), Event()).completions
    assert [one.token_ids for group in after for one in group] == [
        one.token_ids for group in before for one in group
    ]
