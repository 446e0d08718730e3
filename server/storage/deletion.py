"""What people delete: jobs, checkpoints, final models, replays.

A job is only marked: it is invisible from then on, and the leader removes its rows in batches (rows.py), so
that a long history holds nobody up. What something still running needs is refused, and the error lists it.
"""

from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.contracts.api import FieldError
from powermean.contracts.replays import ReplayState
from server.db.inserts import upsert
from server.db.models import Checkpoint, Garbage, Job, Outbox, Replay
from server.db.scoped import ScopedSession
from server.db.session import changes, database_now
from server.errors import ConflictError, NotFoundError
from server.jobs import checkpoints
from server.jobs.events import lock_job
from server.jobs.repository import latest_checkpoint
from server.jobs.states import state_of
from server.replays.repository import get_replay, lock_replay

_OPEN = (ReplayState.WAITING, ReplayState.RUNNING)


def delete_job(session: ScopedSession, job_id: str, *, cascade: bool) -> None:
    """Delete an ended job with all that it recorded; with `cascade` also if replays of it still wait.

    Raises NotFoundError, or ConflictError: it has not ended, or replays need it.
    """
    job = lock_job(session, job_id)
    _check_ended(job)
    waiting = list(session.scalars(select(Replay).where(Replay.job_id == job_id, Replay.state.in_(_OPEN))))
    running = [replay for replay in waiting if replay.state == ReplayState.RUNNING]
    if in_the_way := running if cascade else waiting:
        raise ConflictError(
            f"{len(in_the_way)} replays of job {job_id} have not ended",
            remedy="Wait until they have ended." if running else "Ask with cascade=true to delete them too.",
            fields=[FieldError(path=f"replays.{one.id}", message=f"is {one.state}") for one in in_the_way],
        )
    mark_deleted(session, job)


def mark_deleted(session: Session, job: Job) -> None:
    """Hide a job for good; its idempotency key is free again, and its waiting replays are dropped."""
    for replay in session.scalars(select(Replay).where(Replay.job_id == job.id, Replay.state.in_(_OPEN))):
        _drop_replay(session, replay)
    job.deleted_at = database_now(session)
    job.idempotency_key = None
    changes(session).swept = True


def delete_model(session: ScopedSession, job_id: str) -> None:
    """Delete the files of a finished job's model; its numbers stay. Raises NotFoundError, ConflictError."""
    job = lock_job(session, job_id)
    _check_ended(job)
    if not job.result or not job.result["model"]["files"]:
        raise NotFoundError(f"job {job_id} has no final model")
    result: dict[str, Any] = job.result | {"model": job.result["model"] | {"files": {}}}
    job.result = result
    upsert(session, Garbage, [{"key": f"jobs/{job_id}/model/", "created_at": database_now(session)}])


def delete_replay(session: ScopedSession, job_id: str, replay_id: str) -> None:
    """Delete a replay that does not run. Raises NotFoundError, or ConflictError: it runs."""
    get_replay(session, replay_id, job_id)
    replay = lock_replay(session, replay_id)
    if replay.state == ReplayState.RUNNING:
        raise ConflictError(
            f"replay {replay_id} runs on node {replay.node}", remedy="Wait until it has ended."
        )
    _drop_replay(session, replay)


def delete_checkpoint(session: ScopedSession, job_id: str, step: int) -> None:
    """Delete a job's checkpoints of a step.

    Raises NotFoundError, or ConflictError: one is pinned, or the job has not ended and would resume from it.
    """
    job = lock_job(session, job_id)
    found = _checkpoints(session, job_id, step)
    latest = latest_checkpoint(session, job_id)
    if not state_of(job).final and latest in found:
        raise ConflictError(
            f"job {job_id} is {job.state} and resumes from step {step} if it has to",
            remedy="Delete an older checkpoint, or wait until the job has ended.",
        )
    if any(checkpoint.pinned for checkpoint in found):
        raise ConflictError(f"the checkpoint of step {step} is pinned", remedy="Unpin it first.")
    for checkpoint in found:
        checkpoints.drop(session, checkpoint)


def pin_checkpoint(session: ScopedSession, job_id: str, step: int, pinned: bool) -> None:
    """Keep the checkpoints of a step whatever spec and retention say, or stop that. Raises NotFoundError."""
    lock_job(session, job_id)
    for checkpoint in _checkpoints(session, job_id, step):
        checkpoint.pinned = pinned


def _checkpoints(session: ScopedSession, job_id: str, step: int) -> list[Checkpoint]:
    query = select(Checkpoint).where(Checkpoint.job_id == job_id, Checkpoint.step == step)
    found = list(session.scalars(query))
    if not found:
        raise NotFoundError(
            f"job {job_id} has no checkpoint of step {step}",
            remedy="GET /v1/jobs/{id}/checkpoints lists the checkpoints that are kept.",
        )
    return found


def _check_ended(job: Job) -> None:
    if not state_of(job).final:
        raise ConflictError(
            f"job {job.id} is {job.state}: only an ended job can be deleted",
            remedy="Cancel it first, or wait until it has ended.",
        )


def _drop_replay(session: Session, replay: Replay) -> None:
    now = database_now(session)
    upsert(session, Garbage, [{"key": f"jobs/{replay.job_id}/replays/{replay.id}/", "created_at": now}])
    session.execute(delete(Outbox).where(Outbox.subject == replay.id))
    session.delete(replay)
