"""Runs requests in order of arrival, as many at once as the engine allows; a bounded number may wait."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any, TypeVar

from rollout.engine import CancelledError, EngineError

Result = TypeVar("Result")


class RequestQueue:
    """Runs `at_once` requests together; drops those whose clients have left."""

    def __init__(self, at_once: int, max_waiting: int) -> None:
        self._most = at_once + max_waiting
        self._threads = ThreadPoolExecutor(max_workers=at_once, thread_name_prefix="engine")
        self._cancelled: set[Event] = set()
        self._closed = False

    @property
    def taken(self) -> int:
        """Number of requests running or waiting."""
        return len(self._cancelled)

    async def run(
        self, work: Callable[[Event], Result], gone: Callable[[], Coroutine[Any, Any, None]]
    ) -> Result:
        """The result of `work`. When `gone` returns, the caller has left, and the work's event is set.

        Raises EngineError (busy, stopping), CancelledError if the caller has left, and whatever `work`
        raises.
        """
        if self._closed:
            raise EngineError(503, "stopping", "the rollout service is stopping")
        if self.taken >= self._most:
            raise EngineError(
                503,
                "busy",
                f"{self.taken} requests are already running or waiting",
                remedy="Try again later.",
            )
        cancelled = Event()
        self._cancelled.add(cancelled)
        turn = asyncio.get_running_loop().run_in_executor(self._threads, _unless_cancelled, work, cancelled)
        watch = asyncio.create_task(gone())
        try:
            either: set[asyncio.Future[Any]] = {turn, watch}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if not turn.done():
                cancelled.set()
            return await turn
        finally:
            cancelled.set()
            self._cancelled.discard(cancelled)
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    def close(self) -> None:
        """Refuse new requests, and cancel those waiting or running."""
        self._closed = True
        for cancelled in self._cancelled:
            cancelled.set()
        self._threads.shutdown(wait=False, cancel_futures=False)


def _unless_cancelled(work: Callable[[Event], Result], cancelled: Event) -> Result:
    if cancelled.is_set():
        raise CancelledError
    return work(cancelled)
