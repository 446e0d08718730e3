"""Refusals on their way to the audit log: each is there within a second, a flood of them is counted."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from powermean.contracts.audit import AuditEvent

WINDOW_S = 60.0
MOST_ALIKE = 5  # entries of a kind in a window; the rest becomes one with a count
MOST_KINDS = 50  # in a window; what comes beyond them becomes one entry
MOST_KEPT = 1000  # while the database is away

Kind = tuple[str | None, ...]
_OTHERS: Kind = ("others",)


@dataclass
class Refusals:
    """Takes refusals from any thread. At most MOST_KINDS * (MOST_ALIKE + 1) + 1 entries a window."""

    clock: Callable[[], float] = time.monotonic
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _ends_at: float = float("-inf")
    _ready: list[AuditEvent] = field(default_factory=list)
    _seen: Counter[Kind] = field(default_factory=Counter)
    _last: dict[Kind, AuditEvent] = field(default_factory=dict)  # of a kind that is counted now

    def add(self, event: AuditEvent) -> None:
        """One more."""
        kind = _kind(event)
        with self._lock:
            self._end_window()
            if kind not in self._seen and len(self._seen) >= MOST_KINDS:
                kind = _OTHERS
            self._seen[kind] += 1
            if kind is not _OTHERS and self._seen[kind] <= MOST_ALIKE:
                self._ready.append(event)
            else:
                self._last[kind] = event

    def take(self, *, all_of_them: bool = False) -> list[AuditEvent]:
        """What is to be written now; counts only when their window has ended, or at the end of the server."""
        with self._lock:
            self._end_window(at_once=all_of_them)
            taken, self._ready = self._ready, []
        return taken

    def give_back(self, events: list[AuditEvent]) -> None:
        """Of what was taken and could not be written, the first are kept for the next try."""
        with self._lock:
            self._ready = [*events, *self._ready][:MOST_KEPT]

    def _end_window(self, *, at_once: bool = False) -> None:
        now = self.clock()
        if now < self._ends_at and not at_once:
            return
        for kind, event in self._last.items():
            if kind is _OTHERS:
                self._ready.append(_of_others(event, self._seen[kind]))
            else:
                count = self._seen[kind] - MOST_ALIKE
                self._ready.append(event.model_copy(update={"count": count, "target": None}))
        self._seen.clear()
        self._last.clear()
        self._ends_at = now + WINDOW_S


def _kind(event: AuditEvent) -> Kind:
    """Of strangers the address alone: a flood of them tries every route."""
    if event.actor is None:
        return (event.address, str(event.status))
    return (event.actor, event.key_id, event.request, str(event.status))


def _of_others(last: AuditEvent, count: int) -> AuditEvent:
    return AuditEvent(
        at=last.at, verb="other", request="other", outcome="refused", status=last.status, count=count
    )
