"""Committing a checkpoint, which makes its files count, and removing older ones."""

from contextlib import suppress

from sqlalchemy.orm import Session

from powermean.contracts.artefacts import Manifest
from powermean.contracts.attempts import CheckpointCommit
from powermean.contracts.training import CheckpointSpec
from powermean.tokens import AttemptClaims
from server.db.inserts import upsert
from server.db.models import MAX_BIG_INTEGER, Checkpoint, Garbage, Job
from server.db.session import database_now
from server.errors import InvalidInputError
from server.jobs import repository
from server.jobs.best import best_of, measured
from server.jobs.events import fence, lock_job, record_event
from server.jobs.stored_spec import SpecRefusedError, chosen


def commit(session: Session, attempt_id: str, claims: AttemptClaims, checkpoint: CheckpointCommit) -> None:
    """Make this checkpoint the one to resume from; repeating the commit has no effect.

    Raises:
        FencedError: the attempt may not write any more.
        InvalidInputError: the job has no such step, or the manifest is empty.
    """
    attempt = fence(session, attempt_id, claims)
    job = lock_job(session, attempt.job_id)
    check_step(job, "step", checkpoint.step)
    if not checkpoint.manifest.files:
        raise InvalidInputError.at(
            "manifest.files", "a checkpoint must have files", "Store them first, then commit."
        )
    check_owner(job.id, "manifest.files", checkpoint.manifest)
    size = sum(ref.size for ref in checkpoint.manifest.files.values())
    if size > MAX_BIG_INTEGER:
        raise InvalidInputError.at("manifest.files", f"{size} bytes in all can't be right")
    latest = repository.latest_checkpoint(session, job.id)
    if latest is not None and latest.attempt == attempt.number and latest.step >= checkpoint.step:
        return
    value = None
    with suppress(SpecRefusedError):
        if (metric := chosen(job.spec, "checkpoints.best")) is not None:
            before = latest.step if latest is not None else 0
            value = measured(session, job.id, metric, checkpoint.step, before)
    upsert(
        session,
        Checkpoint,
        [
            {
                "job_id": job.id,
                "step": checkpoint.step,
                "attempt": attempt.number,
                "manifest": checkpoint.manifest.model_dump(mode="json"),
                "size": size,
                "value": value,
                "created_at": database_now(session),
            }
        ],
    )
    if latest is None or checkpoint.step > latest.step:
        job.restarts = 0
    with suppress(SpecRefusedError):
        _retire(session, job)
    record_event(session, job.id, "checkpoint", {"step": checkpoint.step, "attempt": attempt.number})


def check_step(job: Job, path: str, step: int) -> None:
    """Refuse a step that the job does not have.

    Raises:
        InvalidInputError: naming the field.
    """
    if step > job.total_steps:
        raise InvalidInputError.at(path, f"{step} is above the job's {job.total_steps} steps")


def check_owner(job_id: str, path: str, manifest: Manifest) -> None:
    """Refuse files that are not the job's own: retention would delete another job's files.

    Raises:
        InvalidInputError: naming the file.
    """
    own = f"jobs/{job_id}/"
    for name, ref in manifest.files.items():
        if not ref.key.startswith(own):
            raise InvalidInputError.at(
                f"{path}.{name}.key", "not the job's own artefact", f"Store it below {own}."
            )


def _retire(session: Session, job: Job) -> None:
    """Drop all but the newest checkpoints, the best one, and those that people have pinned.

    Raises SpecRefusedError: this version refuses one of the job's rules, so none is followed.
    """
    rules: CheckpointSpec = chosen(job.spec, "checkpoints")
    found = repository.checkpoints(session, job.id)
    best = best_of(job, found)
    for checkpoint in [one for one in found if not one.pinned][rules.keep :]:
        if checkpoint is not best:
            drop(session, checkpoint)


def drop(session: Session, checkpoint: Checkpoint) -> None:
    """Remove a checkpoint; its files become garbage, and go unless another one refers to them."""
    now = database_now(session)
    upsert(session, Garbage, [{"key": key, "created_at": now} for key in _keys(checkpoint)])
    session.delete(checkpoint)


def _keys(checkpoint: Checkpoint) -> set[str]:
    return {ref["key"] for ref in checkpoint.manifest["files"].values()}
