"""Why each queued job waits: planned afresh from the database, so that every replica can tell."""

import threading
import time
from collections.abc import Mapping

from sqlalchemy.orm import Session

from server.cluster import line, state
from server.db.session import Changes, Database, database_now
from server.placement.outlook import awaited
from server.placement.plan import plan
from server.placement.why import Part, Why, explain
from server.settings import Settings

STARTS_NEXT = "a place is free: it starts in a moment"
REMEMBERED_S = 2.0


class QueueView:
    """What one server tells. A hundred open pages ask every few seconds: one plan answers all of a moment.

    What servers commit to the queue or the cluster is told at once; without Redis, what others do is told
    REMEMBERED_S later.
    """

    def __init__(self, database: Database, settings: Settings) -> None:
        self._database, self._settings = database, settings
        self._one_at_a_time = threading.Lock()
        self._told: Mapping[str, Why] = {}
        self._until, self._after = 0.0, -1  # how long that holds, and after how many changes it was planned
        self._changes = 0
        database.listen(self._note)

    def waiting(self) -> Mapping[str, Why]:
        """Of every queued job."""
        with self._one_at_a_time:
            before = self._changes
            if time.monotonic() > self._until or self._after != before:
                with self._database.read() as session:
                    self._told = waiting(session, self._settings)
                self._until, self._after = time.monotonic() + REMEMBERED_S, before
            return self._told

    def _note(self, changed: Changes) -> None:
        self._changes += changed.plan


def waiting(session: Session, settings: Settings) -> dict[str, Why]:
    """Of every queued job. Those that the plan starts come first, those that pause after a failure last.

    The session must see all projects. `Why.words` leaves out the names of those that a caller may not see.
    """
    now = database_now(session)
    queued = line.queued(session)
    due = [one for one in queued if one.is_due(now)]
    made_of = state.read(session, settings, [one.job for one in due], now)
    made = plan(made_of)
    made.why |= awaited(made_of, made)
    found: dict[str, Why] = {}
    for place, start in enumerate(made.starts, start=1):
        project = next(one.job.project for one in due if one.job.id == start.job_id)
        found[start.job_id] = _plain("next", STARTS_NEXT, project, place)
    starting = len(found)
    for job_id, why in explain(made_of, made, first=starting + 1).items():
        found[job_id] = why
    for one in queued:
        if not one.is_due(now):
            text = one.phase or "it restarts after a pause"
            found[one.job.id] = _plain("restarting", text, one.job.project, len(found) + 1)
    return found


def _plain(kind: str, text: str, project: str, position: int) -> Why:
    return Why(kind, text, project, position, ahead=position - 1, parts=(Part(text),))
