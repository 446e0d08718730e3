"""Work in batches: one thread takes all that has gathered, while the next batch gathers."""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

from server.db.session import DatabaseBusyError

MOST = 64  # at once
CLOSE_S = 10.0

log = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class _Waiting(Generic[T, R]):
    item: T
    answer: asyncio.Future[R | None]


class Batcher(Generic[T, R]):
    """A queue and its thread, which hands all that wait to `work` at once."""

    def __init__(self, name: str, work: Callable[[Sequence[T]], Sequence[R | None]]) -> None:
        """`work` gives an answer for each item, None where the item has to go alone."""
        self._work = work
        self._queue: SimpleQueue[_Waiting[T, R] | None] = SimpleQueue()
        self._closed = False
        self._last = threading.Lock()  # nothing gets into the queue behind its end
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    async def ask(self, item: T) -> R | None:
        """The answer; None: the item has to go alone. Raises what `work` raises."""
        answer: asyncio.Future[R | None] = asyncio.get_running_loop().create_future()
        with self._last:
            if self._closed:
                return None
            self._queue.put(_Waiting(item, answer))
        return await answer

    def close(self) -> None:
        """End the thread when it has done what waits, for CLOSE_S at most; from now on each goes alone."""
        with self._last:
            self._closed = True
            self._queue.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("the thread of %s did not end within %.0f s", self._thread.name, CLOSE_S)

    def _run(self) -> None:
        while (first := self._queue.get()) is not None:
            batch = [first, *self._others(MOST - 1)]
            outcomes: Sequence[R | Exception | None]
            try:
                outcomes = self._work([one.item for one in batch])
                if len(outcomes) != len(batch):
                    raise RuntimeError(f"{len(outcomes)} answers for {len(batch)} items")
            except DatabaseBusyError as error:  # those behind have waited just as long: they get it, too
                batch += self._others()
                outcomes = [error] * len(batch)
            except Exception as error:  # noqa: BLE001 - for those who wait: this thread goes on
                outcomes = [error] * len(batch)
            for one, outcome in zip(batch, outcomes, strict=True):
                with suppress(RuntimeError):  # its loop is closed: nobody waits any more
                    one.answer.get_loop().call_soon_threadsafe(_deliver, one.answer, outcome)

    def _others(self, most: int | None = None) -> list[_Waiting[T, R]]:
        """Who waits, too."""
        found: list[_Waiting[T, R]] = []
        while most is None or len(found) < most:
            try:
                one = self._queue.get_nowait()
            except Empty:
                break
            if one is None:
                self._queue.put(None)  # the end comes after these
                break
            found.append(one)
        return found


def _deliver(answer: asyncio.Future[R | None], outcome: R | Exception | None) -> None:
    if answer.done():  # the request was given up
        return
    if isinstance(outcome, Exception):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
