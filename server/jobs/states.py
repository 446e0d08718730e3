"""A job's states and transitions. What the table does not list can't happen."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from server.db.inserts import upsert
from server.db.models import Garbage, Job
from server.db.session import changes, database_now
from server.errors import ConflictError
from server.jobs.events import append_event
from server.jobs.views import job_summary

CHECKING = "waiting for a node to check the spec"  # the phase while validating
NO_STORE = "waiting for the artefact store: "  # the same, where a node could not use it, and why

TRANSITIONS: dict[JobState, frozenset[JobState]] = {
    JobState.VALIDATING: frozenset({JobState.QUEUED, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    # failed: a node told only then what had ended the attempt
    JobState.QUEUED: frozenset({JobState.STARTING, JobState.PAUSED, JobState.FAILED, JobState.CANCELLED}),
    # back to queued: nobody claimed the attempt in time
    JobState.STARTING: frozenset({JobState.RUNNING, JobState.QUEUED, JobState.PAUSED, JobState.CANCELLED}),
    # back to queued: the attempt ended and another one resumes from its last checkpoint
    JobState.RUNNING: frozenset(
        {JobState.QUEUED, JobState.PAUSED, JobState.FINISHED, JobState.FAILED, JobState.CANCELLED}
    ),
    JobState.PAUSED: frozenset({JobState.QUEUED, JobState.CANCELLED}),
    JobState.FINISHED: frozenset(),
    JobState.FAILED: frozenset(),
    JobState.CANCELLED: frozenset(),
}


def state_of(job: Job) -> JobState:
    """The job's state as the contract's type."""
    return JobState(job.state)


def change_state(session: Session, job: Job, new: JobState, phase: str | None = None) -> None:
    """Move a locked job to `new`, set what it waits for as `phase`, and tell its followers.

    Raises:
        ConflictError: the table has no such transition.
    """
    old = state_of(job)
    if new not in TRANSITIONS[old]:
        raise ConflictError(f"job {job.id} is {old} and cannot become {new}")
    now = database_now(session)
    job.state = new
    job.phase = phase
    if JobState.QUEUED in (old, new) and new is not JobState.STARTING:
        changes(session).plan = True
    if new is JobState.QUEUED:
        job.queued_at = now
    if new is JobState.PAUSED or new.final:
        job.pause_requested = False
    if new is JobState.RUNNING and job.started_at is None:
        job.started_at = now
    if new.final:
        job.finished_at = now
        job.not_before = None
        if job.attempt:  # killed attempts may have left something in the artefact store
            upsert(session, Garbage, [{"key": f"jobs/{job.id}/", "created_at": now}])
    append_event(session, job, "state", summary_data(job), now)


def change_phase(session: Session, job: Job, phase: str, now: datetime | None = None) -> None:
    """Set what a locked job is doing or waiting for, if it changed."""
    if job.phase != phase:
        job.phase = phase
        append_event(session, job, "state", summary_data(job), now)


def tell_phases(session: Session, phases: Mapping[str, str], state: JobState) -> None:
    """Set what jobs wait for, by id; those that are not in this state any more are left alone."""
    query = select(Job).where(Job.id.in_(phases), Job.state == state).order_by(Job.id).with_for_update()
    now = database_now(session)
    for job in session.execute(query.execution_options(populate_existing=True)).scalars():
        change_phase(session, job, phases[job.id], now)


def record_state(session: Session, job: Job) -> None:
    """Tell a locked job's followers its current state."""
    append_event(session, job, "state", summary_data(job))


def summary_data(job: Job) -> dict[str, Any]:
    """The job as a `state` event has it."""
    return job_summary(job).model_dump(mode="json")
