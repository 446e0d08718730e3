"""What a job has stored: its checkpoints and the files of its final model."""

from sqlalchemy import select

from powermean.contracts.api import CheckpointView
from powermean.contracts.artefacts import ArtefactRef, Manifest
from server.db.models import Checkpoint
from server.db.scoped import ScopedSession
from server.errors import NotFoundError
from server.jobs.repository import find_job


def checkpoints(session: ScopedSession, job_id: str) -> tuple[CheckpointView, ...]:
    """The checkpoints that are kept, oldest first. Raises NotFoundError."""
    job = find_job(session, job_id)
    rows = session.scalars(
        select(Checkpoint).where(Checkpoint.job_id == job.id).order_by(Checkpoint.step, Checkpoint.attempt)
    )
    return tuple(
        CheckpointView(step=row.step, attempt=row.attempt, size=row.size, created_at=row.created_at)
        for row in rows
    )


def model_files(session: ScopedSession, job_id: str) -> dict[str, ArtefactRef]:
    """Relative path -> object of the final model. Raises NotFoundError, also for a job without a model."""
    job = find_job(session, job_id)
    if not job.result:
        raise NotFoundError(
            f"{job_id} is {job.state}: it has no final model",
            remedy="A finished job has one; its checkpoints are under /checkpoints.",
        )
    return Manifest.model_validate(job.result["model"]).files


def model_file(session: ScopedSession, job_id: str, path: str) -> ArtefactRef:
    """One file of the final model. Raises NotFoundError."""
    ref = model_files(session, job_id).get(path)
    if ref is None:
        raise NotFoundError(
            f"the model of {job_id} has no such file", remedy="GET /v1/jobs/{id}/files lists them."
        )
    return ref
