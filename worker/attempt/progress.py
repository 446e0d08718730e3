"""How far the trainer is, by what it leaves in the attempt's folder."""

import time

from powermean.contracts.phases import AFTER_LAST_STEP, read_step
from worker.attempt_dir import AttemptDir


class Progress:
    """Look at it again and again."""

    def __init__(self, attempt: AttemptDir) -> None:
        self._attempt = attempt
        self._in_steps = False
        self._signs: tuple[object, ...] = ()
        self._at = time.monotonic()

    def in_steps(self) -> bool:
        """Whether the steps have begun. Until then models are loaded, and that has its own limits."""
        phase = "" if self._in_steps else self._attempt.phase("")
        self._in_steps = self._in_steps or read_step(phase) is not None or phase in AFTER_LAST_STEP
        return self._in_steps

    def stalled_s(self) -> float:
        """Seconds since the last sign of progress that was seen."""
        log = self._attempt.log
        signs = (
            self._attempt.phase(""),
            log.stat().st_size if log.exists() else 0,
            [path.name for path in self._attempt.spooled()[-1:]],
        )
        if signs != self._signs:
            self._signs, self._at = signs, time.monotonic()
        return time.monotonic() - self._at
