"""Requests run together as far as the engine allows; the others wait, up to a bound."""

import asyncio
import threading
from collections.abc import Callable
from threading import Event

import pytest

from rollout.engine import CancelledError, EngineError
from rollout.request_queue import RequestQueue

WAIT_S = 10.0


async def _stays() -> None:
    await asyncio.sleep(3600)


async def _leaves() -> None:
    await asyncio.sleep(0)


def _run(scenario: Callable[[RequestQueue], object], turns: RequestQueue) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(scenario(turns), WAIT_S)  # type: ignore[arg-type]

    try:
        asyncio.run(bounded())
    finally:
        turns.close()


def test_as_many_run_together_as_the_engine_takes() -> None:
    meeting = threading.Barrier(3)

    async def scenario(turns: RequestQueue) -> None:
        runs = (turns.run(lambda _: meeting.wait(WAIT_S), _stays) for _ in range(3))
        assert sorted(await asyncio.gather(*runs)) == [0, 1, 2]
        assert turns.taken == 0

    _run(scenario, RequestQueue(at_once=3, max_waiting=0))


@pytest.mark.parametrize(("at_once", "waiting"), [(1, 0), (1, 2), (2, 1)])
def test_one_more_than_may_run_and_wait_is_refused(at_once: int, waiting: int) -> None:
    goal = Event()

    async def scenario(turns: RequestQueue) -> None:
        tasks = [
            asyncio.create_task(turns.run(lambda _: goal.wait(WAIT_S), _stays))
            for _ in range(at_once + waiting)
        ]
        await asyncio.sleep(0)
        assert turns.taken == at_once + waiting
        with pytest.raises(EngineError) as caught:
            await turns.run(lambda _: True, _stays)
        assert (caught.value.status, caught.value.code) == (503, "busy")
        goal.set()
        assert all(await asyncio.gather(*tasks))

    _run(scenario, RequestQueue(at_once, waiting))


def test_with_one_at_a_time_the_order_is_that_of_arrival() -> None:
    order: list[int] = []

    async def scenario(turns: RequestQueue) -> None:
        await asyncio.gather(*(turns.run(lambda _, i=i: order.append(i), _stays) for i in range(5)))

    _run(scenario, RequestQueue(1, 8))
    assert order == [0, 1, 2, 3, 4]


def test_who_leaves_is_not_worked_for() -> None:
    def work(cancelled: Event) -> None:
        assert cancelled.wait(WAIT_S)
        raise CancelledError

    async def scenario(turns: RequestQueue) -> None:
        with pytest.raises(CancelledError):
            await turns.run(work, _leaves)

    _run(scenario, RequestQueue(1, 0))
