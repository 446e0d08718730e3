"""Changes that arrive together are one transaction: a few calls to the database for all, not for each."""

import logging
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from sqlalchemy.orm import Session

from powermean.errors import PowermeanError
from server.audit import journal
from server.batcher import Batcher
from server.db.session import Database

# Whoever waits for longer for others' locks goes alone. It is less than Postgres takes (deadlock_timeout) to
# see that two transactions wait for each other, and to end either.
LOCK_MS = 500

log = logging.getLogger(__name__)


class Change(Protocol):
    """What somebody wants, and the request's record for the audit log."""

    @property
    def record(self) -> journal.Record | None:
        """None: it is not recorded."""


C = TypeVar("C", bound=Change)
R = TypeVar("R")


class BatchedWrites(Generic[C, R]):
    """Changes of one kind, stored batch by batch."""

    def __init__(
        self, name: str, database: Database, accept: Callable[[Session, Sequence[C]], list[R | None]]
    ) -> None:
        """`accept` makes the changes that it has no objection to, and answers None for the rest."""
        self._name = name
        self._database = database
        self._accept = accept
        self._batcher: Batcher[C, R] = Batcher(name, self._store)

    async def store(self, change: C) -> R | None:
        """What became of it; None: it has to go alone.

        Raises what Database.write raises.
        """
        return await self._batcher.ask(change)

    def close(self) -> None:
        """See Batcher.close."""
        self._batcher.close()

    def _store(self, wanted: Sequence[C]) -> list[R | None]:
        """Raises what the commit raises, and PowermeanError: the database is busy, full or gone."""
        accepted = False
        try:
            with self._database.write() as session:
                answers = self._accept(session, wanted)
                records = [
                    one.record
                    for one, answer in zip(wanted, answers, strict=True)
                    if answer is not None and one.record is not None
                ]
                journal.store(session, records)
                accepted = True
        except Exception as error:
            if accepted or isinstance(error, PowermeanError):
                raise  # they may be stored: nobody may store them again
            # whose fault it is turns out when each goes alone
            log.warning("%d %s were not stored together", len(wanted), self._name, exc_info=True)
            return [None] * len(wanted)
        for record in records:
            record.stored = True
        return answers
