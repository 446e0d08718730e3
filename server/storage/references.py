"""Which objects of the artefact store rows refer to: nothing is removed without asking here."""

from collections.abc import Collection, Iterable
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from server.db.models import Checkpoint, Dataset, Job, LogChunk, Replay, TrajectoryStep


def referenced(session: Session, keys: Collection[str]) -> set[str]:
    """Those of the keys that a row refers to. A key begins with the kind and the id of its owner."""
    owners: dict[tuple[str, str], set[str]] = {}
    for key in keys:
        owners.setdefault(owner_of(key), set()).add(key)
    found: set[str] = set()
    for (kind, owner), of_owner in owners.items():
        found |= of_owner & owned(session, kind, owner)
    return found


def owner_of(key: str) -> tuple[str, str]:
    """jobs/<id>/checkpoints/... -> (jobs, <id>)."""
    kind, _, rest = key.partition("/")
    return kind, rest.partition("/")[0]


def owned(session: Session, kind: str, owner: str) -> set[str]:
    """The keys of all objects that a job's or a dataset's rows refer to."""
    if kind == "datasets":
        query = select(Dataset.artefact).where(Dataset.id == owner)
        return {ref["key"] for ref in session.scalars(query)}
    if kind == "jobs":
        return set(_of_job(session, owner))
    return set()


def _of_job(session: Session, job_id: str) -> Iterable[str]:
    job = session.execute(select(Job.deleted_at, Job.result).where(Job.id == job_id)).one_or_none()
    if job is None or job.deleted_at is not None:
        return
    if job.result:
        yield from _keys(job.result["model"])
    for manifest in session.scalars(select(Checkpoint.manifest).where(Checkpoint.job_id == job_id)):
        yield from _keys(manifest)
    for columns in (
        select(TrajectoryStep.texts, TrajectoryStep.tokens).where(TrajectoryStep.job_id == job_id),
        select(Replay.result, Replay.tokens).where(Replay.job_id == job_id),
        select(LogChunk.artefact).where(LogChunk.job_id == job_id),
    ):
        for refs in session.execute(columns):
            yield from (ref["key"] for ref in refs if ref)


def _keys(manifest: dict[str, Any]) -> Iterable[str]:
    return (ref["key"] for ref in manifest["files"].values())
