"""Asking the rollout service: what is sent, what comes back, and held-out evaluation on top of it."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from powermean.contracts.job import JobSpec
from powermean.contracts.rollout import Completion, GenerateRequest, GenerateResponse, Sampling
from tests.support.tiny_model import char_tokenizer, tiny_spec
from trainer.data import Problem
from trainer.failures import TrainingError
from trainer.learner.tokenizing import decode, load_tokenizer, prompt_encoder
from trainer.rewards.grading import Grade
from trainer.rollouts.batching import collate
from trainer.rollouts.evaluation import evaluate
from trainer.rollouts.sampling import (
    PUBLISH_TIMEOUT_S,
    complete_prompts,
    graded_part,
    sharing_limit,
    texts,
    time_limit,
)
from trainer.seeds import derive_seed, generator

SAMPLING = Sampling(max_new_tokens=4)
END_ID = 1


class Recorder:
    """Answers every prompt with `5` and a newline; remembers what was asked. `lost` groups are left out."""

    def __init__(self, lost: int = 0) -> None:
        self.asked: list[GenerateRequest] = []
        self._lost = lost

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        self.asked.append(request)
        one = Completion(token_ids=(13, 2), logprobs=(-1.0, -2.0), finish_reason="stop", weight_versions=())
        groups = ((one,) * request.n,) * (len(request.prompts) - self._lost)
        return GenerateResponse(completions=groups)

    def publish(self, request: object, timeout_s: float) -> None:
        raise NotImplementedError


class Exact:
    """1 for an equal text."""

    def grade(self, items: Sequence[tuple[str, str]]) -> list[Grade]:
        return [Grade(float(text == answer)) for text, answer in items]


def test_an_answer_that_lacks_completions_is_refused() -> None:
    with pytest.raises(TrainingError) as caught:
        complete_prompts(Recorder(lost=1), [(1,), (2,)], count=3, sampling=SAMPLING, pad_token_id=0)
    assert caught.value.error.code == "engine_answer"
    assert caught.value.retryable


def test_texts_hold_the_completions_own_tokens_only() -> None:
    rollouts = complete_prompts(Recorder(), [(1,), (2,)], count=3, sampling=SAMPLING, pad_token_id=0)
    tokenizer = char_tokenizer()
    assert texts(rollouts, lambda ids: decode(tokenizer, ids), {END_ID}) == ["5\n"] * 6


@pytest.mark.parametrize(
    ("ids", "text"),
    [
        ((9, 0, 10, 2), "1<pad>2\n"),  # or it would be 12
        ((9, 18, 10), "1?2"),
        ((9, 30, 10), "1\ufffd2"),  # the model's vocabulary is larger than the tokenizer's
        ((9, 10, 1), "12"),
        ((9, 1, 10, 1), "1<end>2"),
        ((1,), ""),
        ((), ""),
    ],
)
def test_a_completion_is_what_the_policy_wrote_but_its_end(ids: tuple[int, ...], text: str) -> None:
    one = Completion(token_ids=ids, logprobs=(-1.0,) * len(ids), finish_reason="stop", weight_versions=())
    tokenizer = char_tokenizer()
    assert texts(collate([(1,)], [[one]], 0), lambda some: decode(tokenizer, some), {END_ID}) == [text]


@pytest.mark.parametrize(
    ("text", "stop", "graded"),
    [
        (" 9\nQ5:", ["\nQ5:"], " 9"),
        (" 7\nQ5:", ["\n\n", "\nQ5:"], " 7"),
        ("a b c", ["c", "b"], "a "),
        ("\n5", ["\n"], ""),
        ("5", ["\n"], "5"),
        ("5\n", [], "5\n"),
    ],
)
def test_what_comes_from_the_stop_string_on_is_not_graded(text: str, stop: list[str], graded: str) -> None:
    assert graded_part(text, stop) == graded


def test_the_time_limit_grows_with_the_work() -> None:
    small = GenerateRequest(prompts=((1,),), n=1, sampling=SAMPLING)
    assert time_limit(small) >= 60
    assert time_limit(small.model_copy(update={"n": 1000})) > time_limit(small)


def test_calls_that_share_the_engine_have_time_for_the_longest_of_the_other_side() -> None:
    rollout = {"group_size": 8, "max_new_tokens": 4}
    alone, shared = (
        JobSpec.model_validate(tiny_spec("tiny", rollout=rollout | {"max_staleness": k})) for k in (0, 1)
    )
    assert sharing_limit(alone) == 0
    batch = GenerateRequest(prompts=((1,),) * 16, n=8, sampling=SAMPLING)
    assert sharing_limit(shared) == PUBLISH_TIMEOUT_S + time_limit(batch)
    assert sharing_limit(alone, other_jobs=3) == 3 * time_limit(batch)
    assert sharing_limit(shared, other_jobs=1) == PUBLISH_TIMEOUT_S + 2 * time_limit(batch)
    evaluation = shared.evaluation.model_copy(update={"problems": 1000})
    assert sharing_limit(shared.model_copy(update={"evaluation": evaluation})) > sharing_limit(shared)


@pytest.mark.parametrize(("given", "used"), [(None, 0.7), (0.0, 0.0)])
def test_evaluation_takes_one_completion_each_at_its_own_temperature(
    given: float | None, used: float
) -> None:
    changes = {
        "rollout": {"temperature": 0.7, "max_new_tokens": 4, "stop": ["\n"]},
        "evaluation": {"every": 0, "problems": 2, "temperature": given},
    }
    spec = JobSpec.model_validate(tiny_spec("tiny", **changes))
    engine, tokenizer = Recorder(), char_tokenizer()
    problems = [Problem("a", "1+4=", "5"), Problem("b", "1+1=", "2")]
    for _ in range(2):
        prompts = prompt_encoder(tokenizer)(problems)
        reward = evaluate(
            engine, Exact(), problems, prompts, lambda ids: decode(tokenizer, ids), {END_ID}, spec
        )
        assert reward == 0.5
    first, second = engine.asked
    assert first == second
    assert (first.n, first.sampling.temperature, first.sampling.stop) == (1, used, ("\n",))


def test_a_chat_problem_goes_through_the_chat_template() -> None:
    tokenizer = char_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}={% endfor %}"
    plain, chat = prompt_encoder(tokenizer)([Problem("a", "1+1", "2"), Problem("a", "1+1", "2", chat=True)])
    assert decode(tokenizer, plain) == "1+1"
    assert decode(tokenizer, chat) == "1+1="


def test_a_folder_without_a_tokenizer_is_an_unknown_model(tmp_path: Path) -> None:
    with pytest.raises(TrainingError) as caught:
        load_tokenizer(tmp_path)
    assert caught.value.error.code == "unknown_model"


def test_seeds_differ_by_purpose_and_number_and_fit_the_wire() -> None:
    seeds = [derive_seed(s, p, n) for s in (0, 1) for p in ("rollout", "probe") for n in range(50)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert generator(0, "minibatch", 1, 2).initial_seed() == generator(0, "minibatch", 1, 2).initial_seed()
