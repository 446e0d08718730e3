"""The rollout batches of coming steps: made on demand, or ahead of time in a separate thread.

Batch s trains the weights of version s - 1. With staleness k, sampling it may start when version s - 1 - k is
published: no token is made by older weights, and at most k batches wait while one is trained on.
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
GoOn = Callable[[], None]  # raises if no more batches are wanted


class Batches(Protocol[Made]):
    """The source of batches for training, used in a `with` block around the training."""

    @property
    def ready(self) -> int:
        """Number of batches that are ready."""

    def take(self, step: int) -> Made:
        """The batch of this step. Steps are taken in order; raises what making the batch raised."""

    def published(self, version: int) -> None:
        """Note that the engine now serves these weights."""

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
        """Nothing to stop."""

    def take(self, step: int) -> Batch:
        return self._make(step)

    def published(self, version: int) -> None:
        """Nothing waits for this."""


class SamplingAhead(Generic[Batch]):
    """Staleness k >= 1: a thread makes batch after batch, as far ahead as the published weights allow.

    `while_waiting` is called repeatedly while `take` waits; it may raise. `break_off` makes the calls inside
    `make` raise soon; it is called when the block ends in any way. Everything `make` waits for must have its
    own deadline.
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
        self._changed = Condition()  # guards everything below
        self._version = steps.start - 1  # last published version
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
        """End the thread and drop batches nobody took. A hanging thread ends with the process."""
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
        """See Batches. Batches made before a failure come first."""
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
        except BaseException as error:  # noqa: BLE001 (raised again in the thread that takes the batch)
            with self._changed:
                self._failure = error
                self._changed.notify_all()
        # A grader process started by this thread would end with it, but evaluations still use that process.
        with self._changed:
            self._changed.wait_for(lambda: self._stopping)

    def _wait_for(self, version: int) -> None:
        """Wait until training has published it or the block ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._version >= version)
        self._go_on()

    def _go_on(self) -> None:
        with self._changed:
            if self._stopping:
                raise _StoppedError


class _StoppedError(Exception):
    """The block has ended."""
