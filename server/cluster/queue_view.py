"""Why each queued job waits, as the scheduler would say it now."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from server.cluster import engines, inventory
from server.cluster.demand import waiting_job
from server.cluster.planner import ClusterState, plan
from server.db.models import Job
from server.db.session import database_now
from server.settings import Settings

STARTS_NEXT = "a place is free: it starts in a moment"


@dataclass(frozen=True)
class Why:
    """Why a queued job waits."""

    kind: str
    text: str
    position: int
    help: str | None = None
    start_at: float | None = None
    basis: str | None = None

    def words(self, may_see: Callable[[str], bool]) -> str:
        """For somebody who may see these projects: the planner's reasons name none."""
        return self.text


def waiting(session: Session, settings: Settings) -> dict[str, Why]:
    """Of every queued job, in order of the queue."""
    now = database_now(session)
    query = select(Job.id, Job.demand, Job.longest_sequence, Job.phase, Job.not_before, Job.project_id).where(
        Job.state == JobState.QUEUED, Job.deleted_at.is_(None)
    )
    rows = session.execute(query.order_by(Job.id)).all()
    if not rows:
        return {}
    due = [row for row in rows if row.not_before is None or row.not_before <= now]
    capacities = inventory.capacities(session, settings, now)
    made = plan(
        ClusterState(
            capacities,
            [waiting_job(r.id, r.demand, r.longest_sequence, project=r.project_id) for r in due],
            engines.shared(session, [node.id for node in capacities]),
            engines.unplaced(session),
        )
    )
    found: dict[str, Why] = {}
    for place, row in enumerate(rows, start=1):
        if row.not_before is not None and row.not_before > now:
            found[row.id] = Why("restarting", row.phase or "it restarts after a pause", place)
        elif row.id in made.why:
            found[row.id] = Why("waiting", made.why[row.id], place)
        else:
            found[row.id] = Why("next", STARTS_NEXT, place)
    return found
