"""Callers whom their keys have shown a moment ago, so that a busy client is not looked up for each request.

A change of anybody's account, key or projects empties the memory of the server that made it before that is
acknowledged. Other servers hear of it over Redis, and without that go on for REMEMBERED_S at most.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import event
from sqlalchemy.orm import Session

from server.db.models import ApiKey, Membership, Person, Project
from server.db.session import Changes, Database, changes
from server.identity.callers import Caller
from server.identity.keys import digest

REMEMBERED_S = 1.0
MOST = 10_000
_SAY_WHO = (Person, ApiKey, Membership, Project)


@event.listens_for(Session, "after_flush")
def _note(session: Session, _context: object) -> None:
    if any(isinstance(one, _SAY_WHO) for one in (*session.new, *session.dirty, *session.deleted)):
        changes(session).callers = True


class RecentCallers:
    """The memory of one server, for any thread; its async methods are for the event loop."""

    def __init__(self, database: Database) -> None:
        self._lock = threading.Lock()
        # set when somebody has looked; an event is of one loop
        self._looked_for: dict[tuple[str, asyncio.AbstractEventLoop], asyncio.Event] = {}
        self._known: dict[str, tuple[Caller, float]] = {}  # by what is stored of the key: who, until when
        self._forgotten = 0
        database.listen(self._forget)

    @property
    def forgotten(self) -> int:
        """How often the memory was emptied."""
        return self._forgotten

    def find(self, secret: str) -> Caller | None:
        """Who showed this key a moment ago."""
        caller, until = self._known.get(digest(secret), (None, 0.0))
        return caller if time.monotonic() < until else None

    async def find_soon(self, secret: str) -> Caller | None:
        """As `find`, but waits if another request is already looking this key up."""
        caller = self.find(secret)
        key = digest(secret), asyncio.get_running_loop()
        if caller is None and (looked := self._looked_for.get(key)) is not None:
            await looked.wait()
            caller = self.find(secret)
        return caller

    @contextmanager
    def looking_for(self, secret: str) -> Iterator[None]:
        """Mark the key as being looked up: other requests with it wait in `find_soon`."""
        key, looked = (digest(secret), asyncio.get_running_loop()), asyncio.Event()
        if self._looked_for.setdefault(key, looked) is not looked:
            yield  # somebody else does, too, and began before
            return
        try:
            yield
        finally:
            del self._looked_for[key]
            looked.set()

    def remember(self, secret: str, caller: Caller, forgotten: int) -> None:
        """Remember who was read from the database after `forgotten`, unless that has changed since."""
        with self._lock:
            if forgotten != self._forgotten:
                return
            if len(self._known) >= MOST:
                self._known.clear()
            self._known[digest(secret)] = caller, time.monotonic() + REMEMBERED_S

    def _forget(self, changed: Changes) -> None:
        if changed.callers:
            with self._lock:
                self._forgotten += 1
                self._known.clear()
