"""The scheduler's turn: keep the lead, time out what is silent, start waiting jobs, remove garbage."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactStore
from powermean.contracts.api import JobState
from server.cluster import demand, engines, inventory
from server.cluster.garbage import remove_garbage, sweep
from server.cluster.leadership import Standing, acquire_lead, resign
from server.cluster.planner import ClusterState, WaitingJob, plan
from server.db.models import Allocation, Attempt, Job, Node
from server.db.session import Database, database_now
from server.jobs import attempts
from server.jobs.events import lock_job
from server.jobs.states import CHECKING, change_phase, state_of
from server.nodes import living_nodes
from server.replays import service as replays
from server.settings import Settings

log = logging.getLogger(__name__)
NEVER = datetime.min.replace(tzinfo=UTC)
NO_NODE = "waiting for a node to check the spec: none is connected"
NO_CHECKER = "waiting for a node that can check the spec: all capable nodes are offline"


@dataclass
class Scheduler:
    """One replica's scheduler. Only the leader's turns have an effect."""

    database: Database
    settings: Settings
    artefacts: ArtefactStore
    holder: str
    leads_since: datetime = NEVER  # nodes may not have reached any server before, so silence counts from here

    def turn(self) -> None:
        """One pass. The leader's decisions and its lease are one transaction."""
        with self.database.write() as session:
            standing = acquire_lead(session, self.holder, self.settings.leader_lease_s)
            if standing is Standing.FOLLOWER:
                return
            now = database_now(session)
            if standing is Standing.NEW_LEADER:
                log.info("this replica leads scheduling as %s", self.holder)
                self.leads_since = now
                attempts.extend_leases(session, self.settings, now)
            reap(session, self.settings, now)
            replays.reap(session, self.settings, now)
            now = database_now(session)
            living = living_nodes(session, self.settings, now)
            if now - self.leads_since > timedelta(seconds=self.settings.node_timeout_s):
                engines.reap(session, [node.id for node in living])
            tell_unchecked(session, living)
            start_waiting(session, self.settings, now)
        if standing is Standing.NEW_LEADER:
            sweep(self.artefacts)
        remove_garbage(self.database, self.artefacts)

    def stop(self) -> None:
        """Give up the lead."""
        with self.database.write() as session:
            resign(session, self.holder)


def reap(session: Session, settings: Settings, now: datetime) -> None:
    """Give up attempts that were silent for too long."""
    for attempt_id in attempts.overdue(session, now):
        if attempts.lapse(session, settings, attempt_id):
            log.warning("gave up attempt %s: no heartbeat in time", attempt_id)


def tell_unchecked(session: Session, living: Sequence[Node]) -> None:
    """Record what jobs wait for that no node can check right now."""
    alive, offline = inventory.known(session, {node.id for node in living})
    query = select(Job).where(Job.state == JobState.VALIDATING).order_by(Job.id)
    for job in session.execute(query.execution_options(populate_existing=True)).scalars().all():
        phase = CHECKING if demand.checkers(job.demand, alive, offline) else NO_CHECKER if living else NO_NODE
        if job.phase != phase and state_of(lock_job(session, job.id)) is JobState.VALIDATING:
            change_phase(session, job, phase)


def start_waiting(session: Session, settings: Settings, now: datetime) -> None:
    """Plan, place and start what can be started, and record what the others wait for."""
    jobs = {job.id: job for job in _queued(session, now)}
    session.flush()
    unplaced = engines.unplaced(session)
    if not jobs and not unplaced:
        return
    waiting = _as_waiting(session, list(jobs.values()))
    capacities = inventory.capacities(session, settings, now)
    shared = engines.shared(session, [node.id for node in capacities])
    made = plan(ClusterState(capacities, waiting, shared, unplaced))
    engines.place(session, made.placements, made.engines_why)
    for start in made.starts:
        job = lock_job(session, start.job_id)
        if state_of(job) is JobState.QUEUED:  # it may have been cancelled in the meantime
            attempts.start(session, settings, job, start.allocations)
    for job_id, reason in made.why.items():
        reason = reason[:200]
        if jobs[job_id].phase == reason:
            continue
        job = lock_job(session, job_id)
        if state_of(job) is JobState.QUEUED:
            change_phase(session, job, reason)


def _queued(session: Session, now: datetime) -> Sequence[Job]:
    """Queued jobs whose pause is over, in order of submission; not locked, as there may be many."""
    query = (
        select(Job)
        .where(Job.state == JobState.QUEUED, or_(Job.not_before.is_(None), Job.not_before <= now))
        .order_by(Job.id)
    )
    return session.execute(query.execution_options(populate_existing=True)).scalars().all()


def _as_waiting(session: Session, jobs: Sequence[Job]) -> list[WaitingJob]:
    avoid = _let_down(session, [f"{job.id}.{job.attempt}" for job in jobs if job.attempt])
    return [
        demand.waiting_job(
            job.id, job.demand, job.longest_sequence, frozenset(avoid.get(f"{job.id}.{job.attempt}", ()))
        )
        for job in jobs
    ]


def _let_down(session: Session, attempt_ids: Sequence[str]) -> dict[str, set[str]]:
    """The nodes of a job's lapsed attempts."""
    query = (
        select(Allocation.attempt_id, Allocation.node_id)
        .join(Attempt, Attempt.id == Allocation.attempt_id)
        .where(Attempt.id.in_(attempt_ids), Attempt.state == "lapsed")
    )
    found: dict[str, set[str]] = {}
    for attempt_id, node_id in session.execute(query):
        found.setdefault(attempt_id, set()).add(node_id)
    return found
