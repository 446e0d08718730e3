"""Several rollout services look like one: in answers, publishes and errors."""

from collections.abc import Callable
from threading import Barrier, Event

import pytest

from powermean.contracts.rollout import (
    Completion,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    Sampling,
    VersionSpan,
)
from rollout.client import EngineRefusedError, EngineTimeoutError, EngineUnreachableError
from trainer.failures import TrainingError
from trainer.weights.engine_pool import EnginePool

HOLD = HoldRequest(job_id="job-a", attempt=1, version=2)


def request(prompts: int, *, n: int = 2, long: int = 0) -> GenerateRequest:
    """`long`: tokens of the first prompt beyond its one."""
    first = (0, *[9] * long)
    return GenerateRequest(
        prompts=(first, *[(number,) for number in range(1, prompts)]),
        n=n,
        sampling=Sampling(max_new_tokens=8),
    )


class Replica:
    """Completes a prompt with its first token, its place and the completion's number. `fails`: with what."""

    def __init__(self) -> None:
        self.version = 0
        self.fails: Exception | None = None
        self.starts = False
        self.before: Callable[[], object] = lambda: None  # it answers
        self.asked: list[GenerateRequest] = []
        self.published: list[int] = []
        self.held: list[int] = []
        self.closed = False

    def generate(self, asked: GenerateRequest, timeout_s: float) -> GenerateResponse:
        self.asked.append(asked)
        self.before()
        if self.fails is not None:
            raise self.fails
        span = (VersionSpan(version=self.version, start=0, end=3),)
        places = asked.places or range(len(asked.prompts))
        return GenerateResponse(
            completions=tuple(
                tuple(
                    Completion(
                        token_ids=(prompt[0], place, number),
                        logprobs=(0.0,) * 3,
                        finish_reason="stop",
                        weight_versions=span,
                    )
                    for number in range(asked.n)
                )
                for prompt, place in zip(asked.prompts, places, strict=True)
            )
        )

    def health(self, timeout_s: float) -> EngineState:
        if self.fails is not None:
            raise self.fails
        if self.starts:
            raise EngineRefusedError(503, "engine_error", "HTTP 503")
        return EngineState(ready=True, engine="t", model="m", version=0, attempt=1, max_model_len=9)

    def publish(self, version: int) -> None:
        if self.fails is not None:
            raise self.fails
        if version <= self.version:
            raise EngineRefusedError(409, "stale_version", "not above")
        self.version = version
        self.published.append(version)

    def hold(self, asked: HoldRequest, timeout_s: float) -> None:
        if self.fails is not None:
            raise self.fails
        self.held.append(asked.version)

    def close(self) -> None:
        self.closed = True


def pool_of(count: int) -> tuple[EnginePool, list[Replica]]:
    replicas = [Replica() for _ in range(count)]
    return EnginePool(replicas), replicas  # type: ignore[arg-type]


def publish(pool: EnginePool, version: int) -> None:
    pool.publish(lambda replica: replica.publish(version), version)  # type: ignore[arg-type, call-arg]


def asked(replica: Replica) -> list[int]:
    """The prompts that it was asked for, by their first token."""
    return [prompt[0] for one in replica.asked for prompt in one.prompts]


def died() -> EngineRefusedError:
    return EngineRefusedError(503, "engine_died", "vLLM died")


ITS_OWN: list[Callable[[], Exception]] = [
    died,
    lambda: EngineUnreachableError("http://127.0.0.1:1", "refused"),
    lambda: EngineTimeoutError("POST /v1/generate", 60),
    lambda: EngineRefusedError(503, "weights_incomplete", "vLLM restarted"),
]


@pytest.mark.parametrize("count", [2, 3, 7])
def test_answers_do_not_depend_on_the_number_of_replicas(count: int) -> None:
    pool, replicas = pool_of(count)
    alone, _ = pool_of(1)
    whole = request(5, n=3)
    assert pool.generate(whole, 1.0) == alone.generate(whole, 1.0)
    assert sorted(prompt for replica in replicas for prompt in asked(replica)) == list(range(5))
    assert all(len(replica.asked) <= 1 for replica in replicas)


def test_one_replica_gets_the_request_itself() -> None:
    pool, (replica,) = pool_of(1)
    whole = request(4)
    pool.generate(whole, 1.0)
    assert replica.asked[0] is whole


def test_a_part_of_a_part_keeps_the_places_of_the_whole() -> None:
    pool, replicas = pool_of(2)
    part = request(2).model_copy(update={"places": (3, 8)})
    pool.generate(part, 1.0)
    assert [one.places for replica in replicas for one in replica.asked] == [(3,), (8,)]


def test_a_prompt_goes_where_the_fewest_tokens_are_outstanding() -> None:
    """A prompt of 101 tokens and 2 completions of 8 weighs as much as 6.9 prompts of 1."""
    pool, (first, second) = pool_of(2)
    pool.generate(request(9, long=100), 1.0)
    assert (asked(first), asked(second)) == ([0, 8], list(range(1, 8)))
    pool.generate(request(2), 1.0)  # nothing is outstanding any more
    assert (asked(first), asked(second)) == ([0, 8, 0], [*range(1, 8), 1])


def test_calls_at_the_same_time_count_together() -> None:
    pool, (first, second) = pool_of(2)
    inner = Event()

    def ask_meanwhile() -> None:
        first.before = lambda: None
        pool.generate(request(1), 1.0)
        inner.set()

    first.before = ask_meanwhile
    pool.generate(request(1, n=4), 1.0)
    assert (len(first.asked), len(second.asked)) == (1, 1)
    assert inner.is_set()


def test_replicas_work_at_the_same_time() -> None:
    pool, replicas = pool_of(3)
    together = Barrier(3, timeout=10)
    for replica in replicas:
        replica.before = together.wait
    pool.generate(request(3), 1.0)


@pytest.mark.parametrize("error", ITS_OWN)
def test_what_a_replica_that_fails_was_asked_goes_to_the_others(
    error: Callable[[], Exception], caplog: pytest.LogCaptureFixture
) -> None:
    pool, (first, second, third) = pool_of(3)
    alone, _ = pool_of(1)
    publish(pool, 1)
    publish(alone, 1)
    second.fails = error()
    whole = request(6)
    assert pool.generate(whole, 1.0) == alone.generate(whole, 1.0)
    assert (pool.serving, pool.moved) == (2, 2)
    assert (asked(first), asked(third)) == ([0, 3, 1], [2, 5, 4])
    assert "rollout engine 2 of 3 gets no work" in caplog.text
    pool.generate(whole, 1.0)
    assert len(second.asked) == 1  # it is not asked again
    assert pool.moved == 2


@pytest.mark.parametrize(
    "error",
    [
        EngineRefusedError(422, "too_long", "prompts.0: a prompt of 9 tokens"),
        EngineRefusedError(500, "not_finite", "the model's weights have diverged"),
        EngineRefusedError(409, "fenced", "attempt 1 has been replaced"),
    ],
)
def test_what_no_other_replica_would_do_better_is_raised(error: EngineRefusedError) -> None:
    pool, (_, second) = pool_of(2)
    second.fails = error
    with pytest.raises(EngineRefusedError) as caught:
        pool.generate(request(4), 1.0)
    assert caught.value is error
    assert pool.serving == 2


def test_a_lost_replica_gets_work_again_once_it_has_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    pool, (first, second) = pool_of(2)
    publish(pool, 1)
    second.fails = died()
    pool.generate(request(4), 1.0)
    publish(pool, 2)
    assert pool.serving == 1
    second.fails, second.starts, second.version = None, True, 0  # it is starting again
    publish(pool, 3)
    assert (pool.serving, second.published) == (1, [1])
    second.starts = False
    publish(pool, 4)
    assert (pool.serving, second.published, first.published) == (2, [1, 4], [1, 2, 3, 4])
    pool.generate(request(2), 1.0)
    assert asked(second)[-1] == 1
    assert len(caplog.records) == 1  # that it was lost is told once


def test_a_replica_with_old_weights_gets_no_work() -> None:
    """One that was restarted unnoticed completes with the weights of the model's folder."""
    pool, (_, second) = pool_of(2)
    publish(pool, 7)
    second.version = 0
    answer = pool.generate(request(4), 1.0)
    versions = {span.version for group in answer.completions for one in group for span in one.weight_versions}
    assert (versions, pool.serving, pool.moved) == ({7}, 1, 2)


@pytest.mark.parametrize("error", [*ITS_OWN, lambda: TrainingError("transfer_failed", "no peer")])
def test_a_replica_that_fails_a_publish_is_left_out(error: Callable[[], Exception]) -> None:
    pool, (_, second) = pool_of(2)
    second.fails = error()
    publish(pool, 1)
    second.fails = None
    pool.generate(request(4), 1.0)
    assert (pool.serving, asked(second)) == (1, [])


def test_a_version_that_is_published_again_is_for_those_that_lack_it() -> None:
    pool, (_, second) = pool_of(2)
    publish(pool, 1)
    second.version = 0
    publish(pool, 1)
    assert (pool.serving, second.published) == (2, [1, 1])
    lone, (only,) = pool_of(1)
    only.version = 1
    with pytest.raises(EngineRefusedError, match="not above"):
        publish(lone, 1)


def test_the_error_of_all_names_each_and_says_what_helps() -> None:
    """Weights that are missing come first: the trainer can send them."""
    pool, (first, second, third) = pool_of(3)
    publish(pool, 1)
    first.fails = EngineUnreachableError("http://127.0.0.1:1", "refused")
    second.fails = EngineRefusedError(503, "weights_incomplete", "vLLM restarted")
    third.fails = died()
    with pytest.raises(EngineRefusedError) as caught:
        pool.generate(request(3), 1.0)
    assert (caught.value.code, caught.value.status) == ("weights_incomplete", 503)
    for text in ("all 3 rollout engines", "engine 1: the rollout", "2: vLLM restarted", "3: vLLM died"):
        assert text in str(caught.value)
    first.fails = third.fails = second.fails = EngineUnreachableError("http://127.0.0.1:1", "refused")
    with pytest.raises(EngineUnreachableError):
        publish(pool, 2)


def test_the_only_replicas_error_is_raised_as_it_is_and_it_is_asked_again() -> None:
    pool, (only,) = pool_of(1)
    only.fails = died()
    for _ in range(2):
        with pytest.raises(EngineRefusedError) as caught:
            pool.generate(request(2), 1.0)
        assert caught.value is only.fails
    only.fails = None
    pool.generate(request(2), 1.0)


def test_if_none_serves_all_are_asked() -> None:
    pool, replicas = pool_of(2)
    for replica in replicas:
        replica.fails = died()
    with pytest.raises(EngineRefusedError):
        pool.generate(request(2), 1.0)
    replicas[0].fails = None
    pool.generate(request(2), 1.0)
    assert pool.serving == 1


def test_every_replica_that_serves_is_probed() -> None:
    pool, (first, second, third) = pool_of(3)
    third.fails = died()
    answers = pool.generate_on_each(request(2), 1.0)
    assert [len(answer.completions) for answer in answers] == [2, 2]
    assert (asked(first), asked(second), pool.serving) == ([0, 1], [0, 1], 2)


def test_all_are_held_and_one_that_can_t_be_gets_no_work() -> None:
    pool, (first, second) = pool_of(2)
    second.fails = EngineTimeoutError("POST /v1/hold", 60)
    pool.hold(HOLD, 1.0)
    assert (first.held, pool.serving) == ([2], 1)
    second.fails = None
    pool.hold(HOLD, 1.0)
    assert pool.serving == 1  # to be held is not to have weights


def test_an_answer_of_another_shape_is_an_error() -> None:
    pool, (first, _) = pool_of(2)
    first.generate = lambda *_: GenerateResponse(completions=((),))  # type: ignore[method-assign]
    with pytest.raises(EngineRefusedError) as caught:
        pool.generate(request(2), 1.0)
    assert caught.value.code == "engine_answer"


def test_closing_ends_all() -> None:
    pool, replicas = pool_of(2)
    pool.close()
    assert all(replica.closed for replica in replicas)
