"""One request at a time, in order of arrival: an engine has one model and one thread."""

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from typing import Any, TypeVar

from rollout.engine import CancelledError, EngineError

Result = TypeVar("Result")


class Turns:
    """Runs work for requests one after the other; drops the work of those that nobody waits for any more."""

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._cancelled: set[Event] = set()
        self._closed = False

    @property
    def taken(self) -> int:
        """Requests that run or wait."""
        return len(self._cancelled)

    async def run(
        self, work: Callable[[Event], Result], gone: Callable[[], Coroutine[Any, Any, None]]
    ) -> Result:
        """What `work` returns. `gone` returns when the caller has left; the work's event is set then.

        Raises EngineError (busy, stopping), CancelledError when the caller has left, and what `work` raises.
        """
        if self._closed:
            raise EngineError(503, "stopping", "the rollout service is stopping")
        if self.taken > self._max_waiting:
            raise EngineError(
                503, "busy", f"{self.taken} requests run or wait already", remedy="Ask again in a while."
            )
        cancelled = Event()
        self._cancelled.add(cancelled)
        turn = asyncio.get_running_loop().run_in_executor(self._thread, _unless_cancelled, work, cancelled)
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
        """Refuse what comes, cancel what waits and what runs."""
        self._closed = True
        for cancelled in self._cancelled:
            cancelled.set()
        self._thread.shutdown(wait=False, cancel_futures=False)


def _unless_cancelled(work: Callable[[Event], Result], cancelled: Event) -> Result:
    if cancelled.is_set():
        raise CancelledError
    return work(cancelled)
