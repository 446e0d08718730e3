"""The leader's slow work beside scheduling: the rows of what was deleted, retention, old samples of nodes.

It has a thread of its own, so that no job waits for it. Each transaction is short, and checks that this
replica still leads.
"""

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from server.cluster import samples
from server.cluster.leadership import keeps_lead, leads
from server.db.session import Database, database_now
from server.settings import Settings
from server.storage.retention import apply_retention
from server.storage.rows import deleted_job, empty_projects, remove_project, remove_some

log = logging.getLogger(__name__)

TURN_S = 0.2  # of removing rows; others write in between
RETENTION_S = 300.0
PRUNE_S = 60.0  # between removals of old samples of nodes


class LeadLostError(Exception):
    """Another replica has taken over: this turn is over."""


@dataclass
class Cleaner:
    """One replica's cleaner. Only the leader's turns have an effect."""

    database: Database
    settings: Settings
    holder: str
    retained_at: float = float("-inf")
    pruned_at: float = float("-inf")

    def turn(self) -> bool:
        """One pass; whether there is more to remove."""
        with self.database.read() as session:
            if not leads(session, self.holder, self.settings.leader_lease_s):
                return False
        try:
            more = self._remove_rows()
            if time.monotonic() - self.pruned_at > PRUNE_S:
                with self._leading() as session:
                    samples.prune(session, database_now(session))
                self.pruned_at = time.monotonic()
            if time.monotonic() - self.retained_at > RETENTION_S:
                apply_retention(self.database, self._leading)
                self.retained_at = time.monotonic()
        except LeadLostError:
            return False
        return more

    def _remove_rows(self) -> bool:
        """Remove rows of deleted jobs for a while, then projects without any; whether some are left."""
        until = time.monotonic() + TURN_S
        while time.monotonic() < until:
            with self.database.read() as session:
                job_id = deleted_job(session)
                projects = empty_projects(session) if job_id is None else []
            if job_id is None:
                self._remove_projects(projects)
                return False
            with self._leading() as session:
                left = remove_some(session, job_id)
            if not left:
                log.info("removed job %s", job_id)
        return True

    def _remove_projects(self, projects: Sequence[str]) -> None:
        for project in projects:
            with self._leading() as session:
                remove_project(session, project)
            log.info("removed project %s", project)

    @contextmanager
    def _leading(self) -> Iterator[Session]:
        """A transaction during which no other replica takes over."""
        with self.database.write() as session:
            if not keeps_lead(session, self.holder):
                raise LeadLostError
            yield session
