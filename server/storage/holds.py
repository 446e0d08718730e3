"""Holds on the artefact store: while one is valid, no server removes an object from it.

A backup copies what a snapshot of the database names, which takes a while; meanwhile checkpoints become old
and jobs are deleted. What was to be removed waits in `garbage` until the hold ends. A hold is a lease in the
database, so that one whose holder was killed ends by itself.
"""

import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import delete, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from powermean.errors import PowermeanError
from server.db.inserts import upsert
from server.db.models import Leader
from server.db.session import Database, database_now

HOLD_S = 120.0
RENEW_S = 20.0
_PREFIX = "hold:"


class HoldLostError(PowermeanError):
    """The hold could not be renewed in time: objects may have been removed meanwhile."""


class Hold:
    """One hold, renewed by a thread of its own."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._name = f"{_PREFIX}{secrets.token_hex(8)}"
        self._ended = threading.Event()
        self._lost = False
        self._thread = threading.Thread(target=self._keep, name="hold", daemon=True)

    def take(self) -> None:
        """Take it, and keep it."""
        self._renew()
        self._thread.start()

    def check(self) -> None:
        """Raises HoldLostError if it was not valid all the time, and SQLAlchemyError if nobody can say."""
        self._renew()
        if self._lost:
            raise HoldLostError(
                "the database did not take the renewal of the hold on the artefact store in time",
                remedy="Try again when the database answers.",
            )

    def release(self) -> None:
        """Let the store be tidied again."""
        self._ended.set()
        self._thread.join()
        with self._database.write() as session:
            session.execute(delete(Leader).where(Leader.name == self._name))

    def _keep(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self._renew()
            except (SQLAlchemyError, PowermeanError, OSError):
                continue  # the next renewal sees whether it came too late

    def _renew(self) -> None:
        with self._database.write() as session:
            now = database_now(session)
            before = session.get(Leader, self._name)
            self._lost |= before is not None and not _is_valid(before.expires_at - now)
            row = {"name": self._name, "holder": "backup", "expires_at": now + timedelta(seconds=HOLD_S)}
            upsert(session, Leader, [row], replace=["expires_at"])


@contextmanager
def held(database: Database) -> Iterator[Hold]:
    """Hold everything in the artefact store while this is open."""
    hold = Hold(database)
    hold.take()
    try:
        yield hold
    finally:
        hold.release()


def is_held(session: Session) -> bool:
    """Whether nothing may be removed now."""
    query = select(Leader.expires_at).where(Leader.name.startswith(_PREFIX))
    ends = session.scalars(query).all()
    now = database_now(session)  # read last, so that a renewal in between does not seem to end too late
    return any(_is_valid(one - now) for one in ends)


def _is_valid(left: timedelta) -> bool:
    """Whether a hold that ends so long from now counts; one from a clock that was set back since does not."""
    return timedelta() < left <= timedelta(seconds=HOLD_S)
