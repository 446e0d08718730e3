"""Threads that repeat a task until stopped: soon when woken, otherwise after a pause.

Turns of a busy server must not follow each other without a break, since they share the database and the
interpreter with requests: after each one its loop rests, the longer the turn took, and what happens meanwhile
is the next turn's work.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

log = logging.getLogger(__name__)

STOP_TIMEOUT_S = 10.0
REST_S = 0.05
REST_SHARE = 4.0  # rest at least so many times as long as the turn took


class Loop:
    """Calls `turn` until stopped. A failed turn is logged, and the next one follows after the pause.

    A turn that returns True has left work for the next one, which follows after the rest.
    """

    def __init__(
        self,
        name: str,
        turn: Callable[[], bool | None],
        pause_s: float,
        at_end: Callable[[], None] | None = None,
    ) -> None:
        self._turn = turn
        self._pause_s = pause_s
        self._at_end = at_end
        self._woken = threading.Event()
        self._stop = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def wake(self) -> None:
        """Skip the pause (not the rest), because there may be something to do."""
        self._woken.set()

    def stop(self) -> None:
        """Stop after the current turn; waits for it for STOP_TIMEOUT_S, and only when first asked."""
        asked_before = self._stop.is_set()
        self._stop.set()
        self._woken.set()
        self._thread.join(0 if asked_before else STOP_TIMEOUT_S)
        if self._thread.is_alive() and not asked_before:
            log.warning("%s did not stop within %.0f s", self._thread.name, STOP_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            self._woken.clear()
            began = time.monotonic()
            if self._take(self._turn):
                self._woken.set()
            self._stop.wait(min(self._pause_s, max(REST_S, REST_SHARE * (time.monotonic() - began))))
            if not self._stop.is_set():  # a turn that failed has cleared what stop() set
                self._woken.wait(self._pause_s)
        if self._at_end is not None:
            self._take(self._at_end)

    def _take(self, turn: Callable[[], bool | None]) -> bool | None:
        try:
            more = turn()
            self._failing = False
            return more
        except Exception:  # the boundary of a task: the database may be unavailable for a while
            if not self._failing:
                log.exception("%s: a turn failed; trying again", self._thread.name)
            self._failing = True
            self._woken.clear()
            return False


def stop_all(loops: Iterable[Loop]) -> None:
    """Stop loops, all at once; repeating it does nothing."""
    with ThreadPoolExecutor() as pool:
        list(pool.map(Loop.stop, loops))
