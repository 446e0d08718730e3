"""Loops rest after their turns, however often they are woken, and are woken at once after that."""

import threading
import time
from itertools import pairwise

import pytest

from server.cluster import loops
from server.cluster.loops import REST_S, Loop


def run(turn, pause_s: float, wakes_for_s: float) -> None:
    """A loop that is woken all the time."""
    loop = Loop("test", turn, pause_s)
    loop.start()
    ends = time.monotonic() + wakes_for_s
    while time.monotonic() < ends:
        loop.wake()
        time.sleep(0.001)
    loop.stop()


def test_a_loop_that_is_woken_all_the_time_rests_in_between():
    ends: list[float] = []
    run(lambda: ends.append(time.monotonic()), pause_s=60, wakes_for_s=REST_S * 5)
    assert 2 <= len(ends) <= 6
    assert all(later - before >= REST_S for before, later in pairwise(ends))


def test_a_turn_that_left_work_is_followed_by_another():
    left, done = [True, True, False], threading.Event()

    def turn() -> bool:
        more = left.pop(0)
        if not more:
            done.set()
        return more

    loop = Loop("test", turn, pause_s=60)
    loop.start()
    assert done.wait(10)
    loop.stop()


def test_what_happens_in_the_rest_is_not_forgotten():
    turns, second = [], threading.Event()

    def turn() -> None:
        turns.append(1)
        if len(turns) == 1:
            loop.wake()
        else:
            second.set()

    loop = Loop("test", turn, pause_s=60)
    loop.start()
    assert second.wait(10)
    loop.stop()


@pytest.mark.slow
def test_stopping_does_not_wait_for_the_rest():
    loop = Loop("test", lambda: time.sleep(0.5), pause_s=60)  # a rest of 2 s
    loop.start()
    time.sleep(0.6)
    began = time.monotonic()
    loop.stop()
    assert time.monotonic() - began < 1.5


def test_stopping_waits_for_no_pause_after_a_turn_that_failed():
    within, go = threading.Event(), threading.Event()

    def turn() -> None:
        within.set()
        assert go.wait(10)
        raise RuntimeError("the database is away")

    loop = Loop("test", turn, pause_s=60)
    loop.start()
    assert within.wait(10)
    threading.Timer(0.2, go.set).start()  # stop() is waiting by then
    began = time.monotonic()
    loop.stop()
    assert time.monotonic() - began < 5


def test_a_loop_that_hangs_is_waited_for_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loops, "STOP_TIMEOUT_S", 0.2)
    within, go = threading.Event(), threading.Event()
    loop = Loop("test", lambda: (within.set(), go.wait(10))[1], pause_s=60)
    loop.start()
    assert within.wait(10)
    loop.stop()
    monkeypatch.setattr(loops, "STOP_TIMEOUT_S", 10.0)
    began = time.monotonic()
    loop.stop()
    assert time.monotonic() - began < 5
    go.set()
