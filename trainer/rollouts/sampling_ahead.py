"""The rollout batches of coming steps: made when they are asked for, or ahead in a thread of their own.

Batch s is trained on top of weights s - 1. With staleness k it may be begun as soon as version s - 1 - k is
published: no token is made by older weights, and besides the batch that is trained on at most k wait for
their turn.
"""

import logging
from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from types import TracebackType
from typing import Generic, Protocol, TypeVar

log = logging.getLogger(__name__)

STOP_S = 30.0
_POLL_S = 0.2

Batch = TypeVar("Batch")
Made = TypeVar("Made", covariant=True)
GoOn = Callable[[], None]  # raises when no batch is wanted any more


class Batches(Protocol[Made]):
    """Where training gets its batches from, in a `with` block that ends with the training."""

    @property
    def ready(self) -> int:
        """Batches that could be taken at once."""

    def take(self, step: int) -> Made:
        """The batch of this step. Steps are taken in their order; raises what making it raised."""

    def published(self, version: int) -> None:
        """Say that the engine serves these weights."""

    def __enter__(self) -> "Batches[Made]": ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class SamplingInTurn(Generic[Batch]):
    """Staleness 0: each batch is made when training asks for it."""

    ready = 0

    def __init__(self, make: Callable[[int], Batch]) -> None:
        self._make = make

    def __enter__(self) -> "SamplingInTurn[Batch]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is under way."""

    def take(self, step: int) -> Batch:
        return self._make(step)

    def published(self, version: int) -> None:
        """Nobody waits for it."""


class SamplingAhead(Generic[Batch]):
    """Staleness k >= 1: a thread makes batch after batch, as far ahead as the published weights allow.

    `while_waiting` is called again and again while `take` waits; it may raise. `break_off` lets the calls
    that `make` is in raise soon: it is called when the block ends, however it ends. All that `make` waits
    for must have a deadline of its own.
    """

    def __init__(
        self,
        make: Callable[[int, GoOn], Batch],
        steps: range,
        staleness: int,
        *,
        while_waiting: Callable[[], None],
        break_off: Callable[[], None],
        stop_s: float = STOP_S,
    ) -> None:
        self._make = make
        self._steps = steps
        self._staleness = staleness
        self._while_waiting = while_waiting
        self._break_off = break_off
        self._stop_s = stop_s
        self._changed = Condition()  # of all that follows
        self._version = steps.start - 1  # published last
        self._ready: deque[Batch] = deque()
        self._failure: BaseException | None = None
        self._stopping = False
        self._thread = Thread(target=self._run, name="sampler", daemon=True)

    def __enter__(self) -> "SamplingAhead[Batch]":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the thread; batches that nobody took are lost. One that hangs ends with the process."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._break_off()
        self._thread.join(self._stop_s)
        if self._thread.is_alive():
            log.warning("the sampler did not stop within %g s", self._stop_s)

    @property
    def ready(self) -> int:
        with self._changed:
            return len(self._ready)

    def take(self, step: int) -> Batch:
        """See Batches. What was made before a failure is given first."""
        while True:
            with self._changed:
                if not self._ready and self._failure is None:
                    self._changed.wait(_POLL_S)
                if self._ready:
                    return self._ready.popleft()
                if self._failure is not None:
                    raise self._failure
            self._while_waiting()

    def published(self, version: int) -> None:
        with self._changed:
            self._version = version
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            for step in self._steps:
                self._wait_for(step - 1 - self._staleness)
                batch = self._make(step, self._go_on)
                with self._changed:
                    self._ready.append(batch)
                    self._changed.notify_all()
        except _StoppedError:
            return
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that asks for the batch)
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        # A grader's process that this thread started would end with it, and evaluations still use that.
        with self._changed:
            self._changed.wait_for(lambda: self._stopping)

    def _wait_for(self, version: int) -> None:
        """Training publishes it, or ends the block."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._version >= version)
        self._go_on()

    def _go_on(self) -> None:
        with self._changed:
            if self._stopping:
                raise _StoppedError


class _StoppedError(Exception):
    """The block is over."""
