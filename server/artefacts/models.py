"""What a job has stored: its checkpoints and the files of its final model."""

from contextlib import suppress

from powermean.contracts.api import CheckpointView
from powermean.contracts.artefacts import ArtefactRef, Manifest
from powermean.contracts.forks import Origin
from server.db.scoped import ScopedSession
from server.errors import NotFoundError
from server.jobs import repository
from server.jobs.best import best_of
from server.jobs.forks import found_at, origin_of
from server.jobs.repository import find_job
from server.jobs.stored_spec import SpecRefusedError, chosen


def checkpoints(session: ScopedSession, job_id: str) -> tuple[CheckpointView, ...]:
    """The checkpoints that are kept, oldest first. Raises NotFoundError."""
    job = find_job(session, job_id)
    rows = repository.checkpoints(session, job_id)
    metric = best = None
    with suppress(SpecRefusedError):  # the job's own view names the field
        metric, best = chosen(job.spec, "checkpoints.best"), best_of(job, rows)
    return tuple(
        CheckpointView(
            step=row.step,
            attempt=row.attempt,
            size=row.size,
            pinned=row.pinned,
            metric=metric,
            value=row.value,
            best=row is best,
            created_at=row.created_at,
        )
        for row in reversed(rows)
    )


def checkpoint(session: ScopedSession, job_id: str, step: str) -> Origin:
    """A checkpoint's weights, by its step or as `best`. Raises NotFoundError."""
    return found_at(session, find_job(session, job_id), step)


def checkpoint_file(session: ScopedSession, job_id: str, step: str, path: str) -> ArtefactRef:
    """One of its files. Raises NotFoundError."""
    ref = checkpoint(session, job_id, step).files.files.get(path)
    if ref is None:
        raise NotFoundError(
            f"the checkpoint of {job_id} has no such file",
            remedy="GET /v1/jobs/{id}/checkpoints/{step}/files lists them.",
        )
    return ref


def origin_file(session: ScopedSession, job_id: str, owner: str, path: str) -> ArtefactRef:
    """A file that a fork began with, and that `owner` stored, which may be deleted. Raises NotFoundError."""
    part = origin_of(find_job(session, job_id))
    while part is not None:
        if part.job_id == owner and path in part.files.files:
            return part.files.files[path]
        part = part.base
    raise NotFoundError(f"{job_id} did not begin with such a file of {owner}")


def model_files(session: ScopedSession, job_id: str) -> dict[str, ArtefactRef]:
    """Relative path -> object of the final model. Raises NotFoundError, also for a job without a model."""
    job = find_job(session, job_id)
    if not job.result:
        raise NotFoundError(
            f"{job_id} is {job.state}: it has no final model",
            remedy="A finished job has one; its checkpoints are under /checkpoints.",
        )
    files = Manifest.model_validate(job.result["model"]).files
    if not files:
        raise NotFoundError(f"the final model of {job_id} was deleted")
    return files


def model_file(session: ScopedSession, job_id: str, path: str) -> ArtefactRef:
    """One file of the final model. Raises NotFoundError."""
    ref = model_files(session, job_id).get(path)
    if ref is None:
        raise NotFoundError(
            f"the model of {job_id} has no such file", remedy="GET /v1/jobs/{id}/files lists them."
        )
    return ref
