"""How many completions of the calls in progress are finished, in a file for people.

The supervisor of the engine's attempt puts it into its heartbeats, so no request asks for it.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

SUFFIX = ".completions"  # of the file beside the one that says where the engine serves
EVERY_S = 1.0  # between two writes
Finished = Callable[[int], object]  # told how many more completions are finished, from any thread


def nobody(_more: int) -> None:
    """Nobody counts."""


class CompletionCount:
    """Keeps `12 of 64` in the file while calls are in progress. No path: nobody reads it."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._lock = Lock()
        self._calls = self._finished = self._total = 0
        self._written = float("-inf")

    @contextmanager
    def of(self, total: int) -> Iterator[Finished]:
        """Count a call's completions."""
        with self._lock:
            self._calls += 1
            self._total += total
            self._write()
        try:
            yield self._add
        finally:
            with self._lock:
                self._calls -= 1
                if self._calls == 0:
                    self._finished = self._total = 0
                    self._remove()

    def _add(self, more: int) -> None:
        with self._lock:
            self._finished += more
            if time.monotonic() - self._written >= EVERY_S:
                self._write()

    def _write(self) -> None:
        if self._path is None:
            return
        part = self._path.with_name(f".{self._path.name}.part")
        with suppress(OSError):  # a full disk must not stop the engine
            part.write_text(f"{self._finished} of {self._total}")
            part.replace(self._path)
        self._written = time.monotonic()

    def _remove(self) -> None:
        if self._path is not None:
            with suppress(OSError):
                self._path.unlink(missing_ok=True)
