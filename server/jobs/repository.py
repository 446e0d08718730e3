"""Queries about jobs."""

import secrets
import statistics
import time
from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session, selectinload

from powermean.contracts.api import JobState
from powermean.contracts.artefacts import Manifest
from powermean.contracts.attempts import CheckpointCommit
from server.db.models import Attempt, Checkpoint, Dataset, Job, JobEvent, Metric
from server.db.session import database_now
from server.errors import NotFoundError

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # base 32, sorted by character
_TIMED_STEPS = 10


def new_job_id() -> str:
    """An id that sorts by creation time: 50 bits of milliseconds, 30 random bits."""
    number = (time.time_ns() // 1_000_000) << 30 | secrets.randbits(30)
    return "job-" + "".join(_ALPHABET[number >> shift & 31] for shift in range(75, -1, -5))


def no_job(job_id: str) -> NotFoundError:
    """There is no such job."""
    return NotFoundError(f"no job {job_id}", remedy="GET /v1/jobs lists the jobs.")


def find_job(session: Session, job_id: str) -> Job:
    """A job without its attempts.

    Raises:
        NotFoundError: there is no such job.
    """
    job = session.get(Job, job_id)
    if job is None:
        raise no_job(job_id)
    return job


def get_job(session: Session, job_id: str) -> Job:
    """A job with its attempts.

    Raises:
        NotFoundError: there is no such job.
    """
    query = (
        select(Job)
        .where(Job.id == job_id)
        .options(selectinload(Job.attempts).selectinload(Attempt.allocations))
        .execution_options(populate_existing=True)
    )
    job = session.execute(query).scalar_one_or_none()
    if job is None:
        raise no_job(job_id)
    if gangs := [attempt.id for attempt in job.attempts if attempt.nodes > 1]:  # most jobs have none
        with_members = select(Attempt).where(Attempt.id.in_(gangs)).options(selectinload(Attempt.members))
        session.execute(with_members.execution_options(populate_existing=True)).all()
    return job


def job_by_idempotency_key(session: Session, person_id: str, project: str, key: str) -> Job:
    """The job that this person submitted earlier to the project under the key."""
    query = select(Job).where(
        Job.created_by == person_id, Job.project_id == project, Job.idempotency_key == key
    )
    return session.execute(query).scalar_one()


def get_dataset(session: Session, dataset_id: str, *, keep: bool = False) -> Dataset | None:
    """An uploaded dataset; with `keep` nobody can remove it before the transaction ends."""
    return session.get(Dataset, dataset_id, with_for_update={"read": True} if keep else None)


def dataset_named(session: Session, name: str, project: str) -> str | None:
    """The id of the project's newest dataset of that name: names may repeat."""
    query = select(Dataset.id).where(Dataset.project_id == project, Dataset.name == name)
    return session.execute(query.order_by(Dataset.created_at.desc()).limit(1)).scalar_one_or_none()


def latest_checkpoint(session: Session, job_id: str) -> Checkpoint | None:
    """Where the job's next attempt resumes."""
    query = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id)
        .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
        .limit(1)
    )
    return session.execute(query).scalar_one_or_none()


def resume_point(session: Session, job_id: str) -> CheckpointCommit | None:
    """The last committed checkpoint, in the form an attempt's claim contains."""
    checkpoint = latest_checkpoint(session, job_id)
    if checkpoint is None:
        return None
    return CheckpointCommit(step=checkpoint.step, manifest=Manifest.model_validate(checkpoint.manifest))


def checkpoints(session: Session, job_id: str) -> Sequence[Checkpoint]:
    """The committed checkpoints, newest first."""
    query = (
        select(Checkpoint)
        .where(Checkpoint.job_id == job_id)
        .order_by(Checkpoint.step.desc(), Checkpoint.attempt.desc())
    )
    return session.execute(query).scalars().all()


def seconds_left(session: Session, job: Job) -> float | None:
    """Estimate from the median duration of the last steps; None before the first step and after the end.

    The time since the last step's trajectories came counts as part of the present step.
    """
    if job.state != JobState.RUNNING:
        return None
    typical = _typical(session, job)
    if typical is None:
        return None
    last = last_step_at(session, job.id)
    in_step = max(0.0, (database_now(session) - last).total_seconds()) if last is not None else 0.0
    return typical * max(0, job.total_steps - job.step) - min(typical, in_step)


def usual_step_s(session: Session, job: Job) -> float | None:
    """How long a step takes with its evaluation and its checkpoint; None before the first one."""
    typical = _typical(session, job)
    return (
        None
        if typical is None
        else typical
        + sum(_newest_value(session, job, name) or 0.0 for name in ("eval/seconds", "time/checkpoint"))
    )


def last_step_at(session: Session, job_id: str) -> datetime | None:
    """When the last finished step was recorded."""
    query = (
        select(JobEvent.created_at)
        .where(JobEvent.job_id == job_id, JobEvent.kind == "trajectories")
        .order_by(JobEvent.seq.desc())
        .limit(1)
    )
    return session.execute(query).scalar_one_or_none()


def _newest_value(session: Session, job: Job, name: str) -> float | None:
    query = (
        select(Metric.value)
        .where(Metric.job_id == job.id, Metric.name == name, Metric.value.is_not(None))
        .order_by(Metric.step.desc(), Metric.attempt.desc())
        .limit(1)
    )
    return session.execute(query).scalar_one_or_none()


def _typical(session: Session, job: Job) -> float | None:
    """The median duration of the last steps."""
    query = (
        select(Metric.value)
        .where(Metric.job_id == job.id, Metric.step > job.step - 2 * _TIMED_STEPS)
        .where(Metric.name == "time/step", Metric.value.is_not(None))
        .order_by(Metric.step.desc(), Metric.attempt.desc())
        .limit(_TIMED_STEPS)
    )
    times = [value for value in session.execute(query).scalars() if value is not None]
    return statistics.median(times) if times else None
