"""Sampling ahead of training: how far, in which order, and how it ends. Whole runs are in test_overlap.py."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.rollouts.sampling_ahead import GoOn, SamplingAhead, SamplingInTurn

WAIT_S = 20.0


def sampler_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "sampler"]


def nothing() -> None:
    pass


@dataclass
class Rollouts:
    """Makes batches, each its step's number, and remembers what was published when each was begun."""

    published: int = 0
    begun: dict[int, int] = field(default_factory=dict)
    delays: dict[int, float] = field(default_factory=dict)  # seconds
    held: dict[int, Event] = field(default_factory=dict)  # until which a batch takes
    failures: dict[int, BaseException] = field(default_factory=dict)
    broken_off: Event = field(default_factory=Event)

    def make(self, step: int, go_on: GoOn) -> int:
        self.begun[step] = self.published
        go_on()
        time.sleep(self.delays.get(step, 0.0))
        if step in self.held:
            assert self.held[step].wait(WAIT_S)
        if step in self.failures:
            raise self.failures[step]
        return step

    def ahead(
        self,
        steps: range,
        staleness: int,
        while_waiting: Callable[[], None] = nothing,
        stop_s: float = WAIT_S,
    ) -> SamplingAhead[int]:
        return SamplingAhead(
            self.make,
            steps,
            staleness,
            while_waiting=while_waiting,
            break_off=self.break_off,
            stop_s=stop_s,
        )

    def break_off(self) -> None:
        self.broken_off.set()
        for held in self.held.values():
            held.set()


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def stays(condition: Callable[[], bool]) -> None:
    """For as long as a thread that were free to go on would need by far."""
    for _ in range(20):
        assert condition()
        time.sleep(0.002)


@given(
    staleness=st.integers(1, 4),
    first=st.integers(1, 5),
    delays=st.lists(st.tuples(*[st.sampled_from([0.0, 0.0005, 0.003])] * 2), min_size=1, max_size=8),
)
def test_no_batch_is_staler_than_allowed_whatever_takes_its_time(
    staleness: int, first: int, delays: list[tuple[float, float]]
) -> None:
    steps = range(first, first + len(delays))
    rollouts = Rollouts(first - 1, delays={step: slow for step, (slow, _) in zip(steps, delays, strict=True)})
    with rollouts.ahead(steps, staleness) as batches:
        for step, (_, slow) in zip(steps, delays, strict=True):
            assert batches.take(step) == step
            assert batches.ready <= staleness
            time.sleep(slow)  # training
            rollouts.published = step
            batches.published(step)
    assert list(rollouts.begun) == list(steps)
    assert all(step - 1 - staleness <= version <= step - 1 for step, version in rollouts.begun.items())
    assert not sampler_threads()


@pytest.mark.parametrize("staleness", [1, 3])
def test_sampling_goes_on_while_training_is_busy_and_then_waits(staleness: int) -> None:
    rollouts = Rollouts()
    with rollouts.ahead(range(1, 9), staleness) as batches:
        assert batches.take(1) == 1
        until(lambda: batches.ready == staleness)  # nobody asked for them yet
        stays(lambda: max(rollouts.begun) == 1 + staleness)
        batches.published(1)
        until(lambda: max(rollouts.begun) == 2 + staleness)
        stays(lambda: max(rollouts.begun) == 2 + staleness)
    assert not sampler_threads()


def test_training_waits_for_a_batch_that_is_not_ready() -> None:
    waited = Event()
    rollouts = Rollouts(held={1: waited})
    with rollouts.ahead(range(1, 3), 1, while_waiting=waited.set) as batches:
        assert batches.take(1) == 1
    assert waited.is_set()


def test_a_failure_surfaces_as_itself_after_what_was_made_before() -> None:
    failure = MemoryError("no more")
    rollouts = Rollouts(failures={2: failure})
    with rollouts.ahead(range(1, 9), 1) as batches:
        until(lambda: 2 in rollouts.begun)
        assert batches.take(1) == 1
        with pytest.raises(MemoryError) as caught:
            batches.take(2)
    assert caught.value is failure
    assert "make" in [entry.name for entry in caught.traceback]
    assert list(rollouts.begun) == [1, 2]
    assert not sampler_threads()


class LeftError(Exception):
    """Training ends."""


def leave() -> None:
    raise LeftError


def test_what_is_looked_at_while_waiting_may_end_the_training() -> None:
    rollouts = Rollouts(held={1: Event()})
    with pytest.raises(LeftError), rollouts.ahead(range(1, 9), 1, while_waiting=leave) as batches:
        batches.take(1)
    assert rollouts.broken_off.is_set()
    assert not sampler_threads()


@pytest.mark.parametrize("taken", [0, 1, 2, 4])
def test_the_end_of_training_ends_the_sampler_wherever_it_is(taken: int) -> None:
    """In a batch, waiting for a version, or with nothing left to do. What nobody took is lost."""
    rollouts = Rollouts(held={3: Event()})
    with rollouts.ahead(range(1, 5), 1) as batches:
        for step in range(1, taken + 1):
            if step == 3:
                rollouts.held[3].set()
            batches.take(step)
            batches.published(step)
        until(lambda: max(rollouts.begun, default=0) == min(4, max(2, taken + 1)))
    assert not sampler_threads()


def test_no_part_of_a_batch_is_begun_after_the_end() -> None:
    held, rounds = Event(), []

    def make(step: int, go_on: GoOn) -> int:
        for number in range(100):
            go_on()
            rounds.append(number)
            assert held.wait(WAIT_S)
        return step

    batches = SamplingAhead(make, range(1, 3), 1, while_waiting=nothing, break_off=held.set)
    with batches:
        until(lambda: rounds == [0])
    assert len(rounds) < 100
    assert not sampler_threads()


def test_a_sampler_that_hangs_does_not_hold_training_up(caplog: pytest.LogCaptureFixture) -> None:
    began, hung = Event(), Event()
    rollouts = Rollouts()

    def hang(step: int, go_on: object) -> bool:
        began.set()
        return hung.wait(WAIT_S)

    batches = SamplingAhead(
        hang,
        range(1, 3),
        1,
        while_waiting=nothing,
        break_off=rollouts.break_off,
        stop_s=0.05,
    )
    with batches:
        assert began.wait(WAIT_S)
    assert "did not stop" in caplog.text
    hung.set()
    until(lambda: not sampler_threads())


def test_in_turn_each_batch_is_made_when_it_is_asked_for() -> None:
    made: list[int] = []
    with SamplingInTurn(lambda step: made.append(step) or step) as batches:
        for step in (1, 2):
            assert (batches.ready, made) == (0, list(range(1, step)))
            assert batches.take(step) == step
            batches.published(step)
    assert not sampler_threads()
