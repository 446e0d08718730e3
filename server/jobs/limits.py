"""The limits that the leader judges: time running, GPU-hours, and attempts without a step.

They count over all attempts: an attempt runs from its claim to its end, and holds GPUs from its start until
they are free. For how long one has run its node says, whose clock for that never jumps.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Literal, NamedTuple

from sqlalchemy import select
from sqlalchemy.orm import Session, load_only

from powermean.contracts import phases
from powermean.contracts.api import JobState
from powermean.contracts.limits import LimitSpec
from server.db.models import Attempt, Job
from server.jobs import allocations, attempts, repository
from server.jobs.events import lock_job
from server.jobs.hours import places
from server.settings import Settings

JUDGED_EVERY_S = 5.0
STALL_FLOOR_S = 300.0  # nobody is stalled sooner, however short the steps
NAMED_AT_ONCE = 100  # jobs in a query; a database takes only so many parameters
WAITING_OR_RUNNING = (JobState.QUEUED, JobState.STARTING, JobState.RUNNING)
HOUR = timedelta(hours=1)


class Reached(NamedTuple):
    """A job whose attempt is to end: `finish` with its model, `cancel` and try again."""

    job_id: str
    attempt: int
    order: Literal["finish", "cancel"]
    rule: str


def judged_here(limits: LimitSpec) -> dict[str, float] | None:
    """What the job's row says of its limits; None: the leader need not look."""
    given = limits.model_dump(include={"wall_hours", "gpu_hours", "stall_factor"}, exclude_none=True)
    return given or None


def reached(session: Session, settings: Settings, served_since: datetime, now: datetime) -> list[Reached]:
    """The running jobs that have reached a limit and are not ordered to do anything yet.

    Before `served_since` there may have been no server that attempts could have told of their steps.
    """
    running = (
        select(Job, Attempt)
        .join(Attempt, (Attempt.job_id == Job.id) & (Attempt.number == Job.attempt))
        .where(Job.state == JobState.RUNNING, Job.limits.is_not(None), Attempt.order == "continue")
        .options(load_only(Job.id, Job.limits, Job.step, Job.total_steps, Job.phase))
        .order_by(Job.id)
    )
    over = []
    for job, attempt in session.execute(running).all():
        limits = job.limits or {}
        if rule := _spent(session, settings, job.id, limits, now):
            over.append(Reached(job.id, attempt.number, "finish", rule))
        elif "stall_factor" in limits and (
            why := _stalled(session, settings, job, attempt, served_since, now)
        ):
            over.append(Reached(job.id, attempt.number, "cancel", why))
    return over


def wall_seconds(session: Session, limits: Mapping[str, Mapping[str, float] | None]) -> dict[str, float]:
    """How long the next attempt of jobs with `wall_hours` may run, by job; `limits` as their rows have them.

    They wait or run. A job that reaches it finishes its step and evaluates: it ends a little later.
    """
    most = {
        job_id: given["wall_hours"] for job_id, given in limits.items() if given and "wall_hours" in given
    }
    if not most:
        return {}
    query = select(Attempt.job_id, Attempt.claimed_at, Attempt.ended_at, Attempt.ran_s)
    if len(most) <= NAMED_AT_ONCE:
        query = query.where(Attempt.job_id.in_(most))
    else:
        limited = Job.state.in_(WAITING_OR_RUNNING), Job.limits.is_not(None)
        query = query.join(Job, Job.id == Attempt.job_id).where(*limited)
    spent: dict[str, timedelta] = dict.fromkeys(most, timedelta())
    for job_id, since, until, ran_s in session.execute(query):
        if job_id in spent and since and until:
            spent[job_id] += _ran(since, until, ran_s)
    return {job_id: max(0.0, hours * 3600 - spent[job_id].total_seconds()) for job_id, hours in most.items()}


def enforce(session: Session, one: Reached, now: datetime) -> None:
    """Give the order, unless the job has left that attempt in the meantime."""
    job = lock_job(session, one.job_id)
    if job.state == JobState.RUNNING and job.attempt == one.attempt:
        attempts.order_by_rule(session, job, one.order, one.rule, now)


def _spent(
    session: Session, settings: Settings, job_id: str, limits: Mapping[str, float], now: datetime
) -> str | None:
    unheard = timedelta(seconds=settings.lease_s + settings.claim_s)
    gpu_hours = partial(_gpu_hours, unheard=unheard)
    for name, count, unit in (("wall_hours", _hours, "hours"), ("gpu_hours", gpu_hours, "GPU-hours")):
        if name in limits and (spent := count(session, job_id, now)) >= limits[name]:
            return f"limits.{name}: {spent:.3g} of {limits[name]:g} {unit}"
    return None


def _stalled(
    session: Session, settings: Settings, job: Job, attempt: Attempt, served_since: datetime, now: datetime
) -> str | None:
    """Why the attempt counts as stalled. Before its first step, when models are loaded, it has any time, and
    after its last one, when the model is saved."""
    if job.step >= job.total_steps or job.phase in phases.AFTER_LAST_STEP:
        return None
    last = repository.last_step_at(session, job.id)
    if last is None or attempt.claimed_at is None or last < attempt.claimed_at:
        return None
    silent = (now - max(last, served_since)).total_seconds()
    unreachable = settings.lease_s  # for so long its node may have been: its steps come once that is over
    if silent <= STALL_FLOOR_S + unreachable:  # most jobs: no more is read of them
        return None
    usual, factor = repository.usual_step_s(session, job), (job.limits or {})["stall_factor"]
    if usual is None or silent <= factor * usual + unreachable:
        return None
    return f"limits.stall_factor: no step for {silent:.0f} s, and the limit is {factor:g} times {usual:.3g} s"


def _hours(session: Session, job_id: str, now: datetime) -> float:
    return sum((ran for ran, _ in _spans(session, job_id, now).values()), timedelta()) / HOUR


def _spans(session: Session, job_id: str, now: datetime) -> dict[str, tuple[timedelta, timedelta]]:
    """For how long each attempt has run, and by how much the database's clock says more (less: below 0)."""
    query = select(Attempt.id, Attempt.claimed_at, Attempt.ended_at, Attempt.ran_s)
    found = {}
    for attempt, since, until, ran_s in session.execute(query.where(Attempt.job_id == job_id)):
        if since is not None:
            ran = _ran(since, until or now, ran_s)
            found[attempt] = ran, (until or now) - since - ran
    return found


def _ran(since: datetime, until: datetime, ran_s: float | None) -> timedelta:
    """For how long an attempt has run; a worker of an older version doesn't say."""
    return timedelta(seconds=ran_s) if ran_s is not None else until - since


def _gpu_hours(session: Session, job_id: str, now: datetime, *, unheard: timedelta) -> float:
    """By the database's clock, without its jumps while attempts ran.

    For as long as `unheard` an attempt may have held GPUs and its node not said so: that is no jump.
    """
    spans = _spans(session, job_id, now).items()
    jumped = {attempt: more for attempt, (_, more) in spans if abs(more) > unheard}
    held = timedelta()
    for (attempt, _, gpu), part in places(allocations.of_job(session, job_id)).items():
        if gpu is not None:
            held += max(timedelta(), (part.end or now) - part.start - jumped.get(attempt, timedelta()))
    return held / HOUR
