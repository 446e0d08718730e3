"""Reports of metrics that arrive together are stored together: a few calls to the database for all.

`accept` takes what a job in training sends: the numbers of its next steps. Whatever is left open (numbers
that may be there already, a job that somebody else has locked, anything to refuse) is for `store_alone`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from powermean.contracts.metrics import MetricRow
from powermean.errors import PowermeanError
from powermean.tokens import AttemptClaims
from server.batcher import Batcher
from server.db.session import Database
from server.jobs.events import fenced_reports
from server.metrics.ingest import ingest_metrics, ingest_new_steps, is_new

MOST_ROWS = 500  # larger reports are stored alone, so that they hold up no others

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Report:
    """What ingest_metrics takes."""

    attempt_id: str
    claims: AttemptClaims
    rows: Sequence[MetricRow]


def accept(session: Session, reports: Sequence[Report]) -> list[bool]:
    """Store those to which there is no objection; whether each is stored. Of each job one at most."""
    places: dict[str, int] = {}
    for place, one in enumerate(reports):
        if one.attempt_id == one.claims.attempt_id:
            places.setdefault(one.claims.job_id, place)
    jobs = fenced_reports(session, {job_id: reports[place].attempt_id for job_id, place in places.items()})
    new = {places[job.job_id]: job for job in jobs.values() if is_new(job, reports[places[job.job_id]].rows)}
    if new:
        ingest_new_steps(session, [(job, reports[place].rows) for place, job in new.items()])
    return [place in new for place in range(len(reports))]


def store_alone(database: Database, report: Report) -> None:
    """Store it in a transaction of its own. Raises what ingest_metrics and Database.write raise."""
    with database.write() as session:
        ingest_metrics(session, report.attempt_id, report.claims, report.rows)


class Reports:
    """The line of reports."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._line: Batcher[Report, bool] = Batcher("reports", self._store)

    async def store(self, report: Report) -> bool:
        """Whether it is stored; if not, it has to go alone.

        Raises what Database.write raises.
        """
        return len(report.rows) <= MOST_ROWS and bool(await self._line.ask(report))

    def close(self) -> None:
        """End the line when it has done what waits; from now on each goes alone."""
        self._line.close()

    def _store(self, reports: Sequence[Report]) -> list[bool]:
        """Raises PowermeanError: the database is busy, full or gone."""
        try:
            with self._database.write() as session:
                return accept(session, reports)
        except PowermeanError:
            raise
        except Exception:
            # stored or not, each may be stored again, and then alone: whose fault it is turns out there
            log.warning("%d reports were not stored together", len(reports), exc_info=True)
            return [False] * len(reports)
