"""Threads that repeat a task until stopped: at once when woken, otherwise after a pause."""

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0


class Loop:
    """Calls `turn` until stopped. A failed turn is logged, and the next one follows after the pause."""

    def __init__(
        self, name: str, turn: Callable[[], None], pause_s: float, at_end: Callable[[], None] | None = None
    ) -> None:
        self._turn = turn
        self._pause_s = pause_s
        self._at_end = at_end
        self._woken = threading.Event()
        self._stopping = False
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Skip the pause, because there may be something to do."""
        self._woken.set()

    def stop(self) -> None:
        """Stop after the current turn; stops waiting for it after STOP_TIMEOUT_S."""
        self._stopping = True
        self._woken.set()
        self._thread.join(STOP_TIMEOUT_S)
        if self._thread.is_alive():
            log.warning("%s did not stop within %.0f s", self._thread.name, STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping:
            self._woken.clear()
            self._take(self._turn)
            self._woken.wait(self._pause_s)
        if self._at_end is not None:
            self._take(self._at_end)

    def _take(self, turn: Callable[[], None]) -> None:
        try:
            turn()
            self._failing = False
        except Exception:  # the boundary of a task: the database may be unavailable for a while
            if not self._failing:
                log.exception("%s: a turn failed; trying again", self._thread.name)
            self._failing = True
            self._woken.clear()
