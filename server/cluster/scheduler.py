"""The scheduler's turn: keep the lead, time out what is silent, start waiting jobs, remove garbage.

A turn reads and plans without a lock. It writes in small transactions, each of which looks again at what it
changes, so that requests get their turns in between however long the line of jobs is.
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from itertools import islice
from typing import TypeVar

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.artefacts import ArtefactStore
from powermean.contracts.api import JobState
from server.cluster import demand, drains, engines, inventory, pilots, state
from server.cluster.clock import ClockWatch, bound_times
from server.cluster.garbage import remove_garbage, sweep
from server.cluster.leadership import (
    Standing,
    acquire_lead,
    keeps_lead,
    leader,
    leads,
    resign,
    served_since,
)
from server.cluster.line import Line, Queued
from server.db.models import Job
from server.db.session import Database, database_now
from server.jobs import attempts, limits
from server.jobs.events import lock_job
from server.jobs.states import CHECKING, NO_STORE, state_of, tell_phases
from server.nodes import living_ids
from server.placement.fit import could_run
from server.placement.outlook import awaited, awaited_by_engines
from server.placement.plan import plan
from server.placement.recheck import still_free
from server.placement.state import ClusterState, NodeCapacity, Plan, Start, Stop
from server.replays import service as replays
from server.settings import Settings

T = TypeVar("T")
log = logging.getLogger(__name__)
NEVER = datetime.min.replace(tzinfo=UTC)
NO_NODE = "waiting for a node to check the spec: none is connected"
NO_CHECKER = "waiting for a node that can check the spec: all capable nodes are offline"
NO_ROOM = "waiting for a node that can check the spec: its disk is full"
STARTS_AT_ONCE = 10  # in one transaction, and stops
REPLAN_S = 10.0  # a state that is the same is planned again so often: jobs grow old, and have run for longer
PHASES_AT_ONCE = 25
PHASES_A_TURN = 250  # what jobs wait for is for people, and the rest is told in the next turns


class LeadLostError(Exception):
    """Another replica has taken over: this turn is over."""


@dataclass
class Scheduler:
    """One replica's scheduler. Only the leader's turns have an effect."""

    database: Database
    settings: Settings
    artefacts: ArtefactStore
    holder: str
    leads_since: datetime = NEVER  # nodes may not have reached any server before, so silence counts from here
    limits_at: float = float("-inf")  # when limits were last looked at
    clock: ClockWatch = field(default_factory=ClockWatch)
    trusted: bool = True  # the database's clock: it has not jumped just now
    settled: ClusterState | None = None  # it was planned, and there is nothing to do or to tell
    planned_at: float = float("-inf")

    def __post_init__(self) -> None:
        self.line = Line(self.database)

    def turn(self) -> bool:
        """One pass; whether there is more to do at once."""
        standing = self._acquire_lead()
        if standing is not Standing.LEADER:
            self.line.forget()
        if standing is Standing.FOLLOWER:
            return False
        try:
            self._reap()
            self._enforce_limits()
            self._drain()
            waiting = self._start_waiting()
            told = self._tell_phases(self._unchecked(), JobState.VALIDATING)
            told += self._tell_phases(waiting, JobState.QUEUED)
        except LeadLostError:
            return False
        if standing is Standing.NEW_LEADER:
            sweep(self.artefacts)
        remove_garbage(self.database, self.artefacts)
        return told >= PHASES_A_TURN

    def stop(self) -> None:
        """Give up the lead."""
        with self.database.write() as session:
            resign(session, self.holder)

    def _acquire_lead(self) -> Standing:
        lease_s = self.settings.leader_lease_s
        with self.database.read() as session:
            self.trusted = self.clock.trusts(session)
            if leads(session, self.holder, lease_s):
                return Standing.LEADER
            if leader(session, lease_s) not in (None, self.holder):
                return Standing.FOLLOWER  # without the row's lock, for which the leader would wait
        with self.database.write() as session:
            standing = acquire_lead(session, self.holder, lease_s)
            if standing is Standing.NEW_LEADER:
                log.info("this replica leads scheduling as %s", self.holder)
                self.leads_since = database_now(session)
                attempts.extend_leases(session, self.settings, self.leads_since)
                bound_times(session, self.settings, self.leads_since)
        return standing

    @contextmanager
    def _leading(self) -> Iterator[Session]:
        """A transaction during which no other replica takes over."""
        with self.database.write() as session:
            if not keeps_lead(session, self.holder):
                raise LeadLostError
            yield session

    def _reap(self) -> None:
        """Give up what was silent for too long."""
        with self.database.read() as session:
            now = database_now(session)
            overdue = attempts.overdue(session, now)
            open_replays = replays.any_open(session)
            living = living_ids(session, self.settings)
            stranded = engines.any_stranded(session, living)
        for attempt_id in overdue:
            with self._leading() as session:
                if attempts.lapse(session, self.settings, attempt_id):
                    log.warning("gave up attempt %s: no heartbeat in time", attempt_id)
        if open_replays and self.trusted:
            with self._leading() as session:
                node_comes = pilots.any_coming(session, self.settings, living, now)
                of_pools = cache(lambda: pilots.outlook(session, self.settings, living, now).words())
                replays.reap(session, self.settings, now, of_pools, node_comes=node_comes)
        if (
            stranded
            and self.trusted
            and now - self.leads_since > timedelta(seconds=self.settings.node_timeout_s)
        ):
            with self._leading() as session:
                engines.reap(session, living_ids(session, self.settings))

    def _enforce_limits(self) -> None:
        """Order the attempts of jobs that have reached a limit to end; looked at every few seconds."""
        if not self.trusted or time.monotonic() - self.limits_at < limits.JUDGED_EVERY_S:
            return
        self.limits_at = time.monotonic()
        with self.database.read() as session:
            now = database_now(session)
            reached = limits.reached(session, self.settings, served_since(session) or now, now)
        for one in reached:
            log.info("job %s: %s", one.job_id, one.rule)
            with self._leading() as session:
                limits.enforce(session, one, now)

    def _drain(self) -> None:
        """Begin the drains whose time has come, and tell what is on draining nodes to leave."""
        with self.database.read() as session:
            due = self.trusted and drains.any_due(session, database_now(session))
        if due:
            with self._leading() as session:
                drains.begin_due(session, database_now(session))
        with self.database.read() as session:
            draining = drains.draining(session)
            if not draining:
                return
            jobs = drains.to_leave(session, draining)
            stranded = engines.any_to_move(session, draining)
        for some in _batches(jobs, STARTS_AT_ONCE):
            with self._leading() as session:
                for job_id in some:
                    drains.order_to_leave(session, job_id, database_now(session))
        if stranded:
            with self._leading() as session:
                engines.move(session, drains.draining(session))

    def _unchecked(self) -> dict[str, str]:
        """What jobs wait for that no node has checked yet, where their rows say something else."""
        unchecked = Job.state == JobState.VALIDATING
        with self.database.read() as session:
            kinds = session.execute(select(Job.demand, Job.phase).where(unchecked).distinct()).all()
            if not kinds:
                return {}
            alive = living_ids(session, self.settings)
            living, offline = inventory.known(session, alive)
            checking, now = inventory.checking(session, alive), database_now(session)
            of_pools = cache(lambda: pilots.outlook(session, self.settings, alive, now))
            nobody = _no_checker(living)
            news: dict[str, str] = {}
            for wanted, said in kinds:
                phase = CHECKING
                if not demand.checkers(wanted, living, offline):
                    able = partial(could_run, demand.waiting_job("", wanted, None))
                    phase = "; ".join([nobody, *of_pools().words(able)])[:200]
                if said != phase and not (phase == CHECKING and _lacks_store(said)):
                    alike = Job.demand == wanted, Job.phase.is_not_distinct_from(said)
                    query = select(Job.id).where(unchecked, *alike, Job.id.not_in(checking))
                    ids = session.scalars(query.order_by(Job.id).limit(PHASES_A_TURN))
                    news |= dict.fromkeys(ids, phase)
            being_checked = select(Job.id, Job.phase).where(unchecked, Job.id.in_(checking))
            for row in session.execute(being_checked) if checking else ():
                phase = _checked_by(checking[row.id], row.phase or "", now)
                if row.phase != phase and not _lacks_store(row.phase):
                    news[row.id] = phase
        return news

    def _start_waiting(self) -> dict[str, str]:
        """Start and stop what should be; what the others wait for, where their rows say otherwise."""
        with self.database.read() as session:
            now = database_now(session)
            queued = self.line.read(session, now)
            if not queued and not engines.unplaced(session):
                return {}
            found = state.read(session, self.settings, [one.job for one in queued], now)
        if found == self.settled and time.monotonic() - self.planned_at < REPLAN_S:
            return {}
        made = plan(found)
        self.planned_at = time.monotonic()
        if found.unplaced:
            with self._leading() as session:
                engines.place(session, made.placements, made.engines_why | awaited_by_engines(found, made))
        for stops in _batches(made.stops, STARTS_AT_ONCE):
            self.line.recheck(stop.made_for for stop in stops)
            with self._leading() as session:
                self._stop(session, stops)
        for starts in _batches(made.starts, STARTS_AT_ONCE):
            self.line.recheck(start.job_id for start in starts)
            with self._leading() as session:
                self._start(session, starts)
        made.why |= awaited(found, made)
        news = _news(made, queued)
        self.settled = None if news or made.starts or made.stops or made.placements else found
        return news

    def _stop(self, session: Session, stops: Sequence[Stop]) -> None:
        """Tell running jobs to give way to those that still wait."""
        now = database_now(session)
        for stop in stops:
            made_for = session.get(Job, stop.made_for)
            if made_for is not None and state_of(made_for) is JobState.QUEUED:
                job = lock_job(session, stop.job_id)
                attempts.order_stop(session, job, stop.reason, now, made_way_for=stop.made_for)

    def _start(self, session: Session, starts: Sequence[Start]) -> None:
        """Start jobs of a plan that was made before, as far as it still holds."""
        capacities = inventory.capacities(session, self.settings, database_now(session))
        shared = engines.shared(session, [node.id for node in capacities])
        for start in still_free(starts, capacities, shared):
            job = lock_job(session, start.job_id)
            if state_of(job) is JobState.QUEUED:  # it may have been cancelled in the meantime
                attempts.start(session, self.settings, job, start.allocations)

    def _tell_phases(self, phases: Mapping[str, str], state: JobState) -> int:
        """Record what jobs in this state wait for, as many as a turn may; how many they were."""
        chosen = list(islice(phases.items(), PHASES_A_TURN))
        for some in _batches(chosen, PHASES_AT_ONCE):
            with self._leading() as session:
                tell_phases(session, dict(some), state)
            self.line.set_phases(dict(some))
        return len(chosen)


def _no_checker(living: Sequence[NodeCapacity]) -> str:
    """Why no node may check a spec."""
    if not living:
        return NO_NODE
    if any(node.full_disk for node in living):
        return NO_ROOM
    closed = next((node.closed for node in living if node.closed), None)
    return f"waiting for a node that can check the spec: {closed}"[:200] if closed else NO_CHECKER


def _lacks_store(phase: str | None) -> bool:
    """Whether a node told why it could not check the spec: that stays until a node could."""
    return phase is not None and phase.startswith(NO_STORE)


def _checked_by(node_id: str, told: str, now: datetime) -> str:
    """The phase of a job whose spec a node is checking: since when is what was told first."""
    words = f"node {node_id} has been checking the spec since "
    return told if told.startswith(words) else f"{words}{now:%H:%M} UTC"


def _batches(rows: Iterable[T], size: int) -> Iterator[list[T]]:
    left = iter(rows)
    while batch := list(islice(left, size)):
        yield batch


def _news(made: Plan, queued: Sequence[Queued]) -> dict[str, str]:
    phases = {one.job.id: one.phase for one in queued}
    told = {job_id: wait.text[:200] for job_id, wait in made.why.items()}
    return {job_id: text for job_id, text in told.items() if phases[job_id] != text}
