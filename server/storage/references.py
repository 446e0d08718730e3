"""Which objects of the artefact store rows refer to: nothing is removed without asking here."""

from collections.abc import Collection, Iterable, Iterator
from itertools import chain
from typing import Any

from sqlalchemy import ColumnElement, select, true
from sqlalchemy.orm import Session

from powermean.contracts.artefacts import ArtefactRef
from server.db.models import Checkpoint, Dataset, ForkedFiles, Job, LogChunk, Replay, TrajectoryStep

ROWS = 1000  # read at a time, where all are


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
        return {ref["key"] for ref in _of_datasets(session, Dataset.id == owner)}
    if kind == "jobs":
        refs = chain(_of_jobs(session, Job.id == owner), _of_forks(session, ForkedFiles.owner == owner))
        return {ref["key"] for ref in refs}
    return set()


def every(session: Session) -> Iterator[ArtefactRef]:
    """All objects that any row refers to; one that several refer to comes several times."""
    found = (_of_datasets(session, true()), _of_jobs(session, true()), _of_forks(session, true()))
    for ref in chain(*found):
        yield ArtefactRef.model_validate(ref)


def _of_datasets(session: Session, which: ColumnElement[bool]) -> Iterator[dict[str, Any]]:
    yield from session.scalars(select(Dataset.artefact).where(which).execution_options(yield_per=ROWS))


def _of_forks(session: Session, which: ColumnElement[bool]) -> Iterator[dict[str, Any]]:
    """What forks began with; it stays though the job that stored it is deleted."""
    query = select(ForkedFiles.files).where(which).execution_options(yield_per=ROWS)
    for files in session.scalars(query):
        yield from files


def _of_jobs(session: Session, which: ColumnElement[bool]) -> Iterator[dict[str, Any]]:
    there = (which, Job.deleted_at.is_(None))
    results = select(Job.result).where(*there).execution_options(yield_per=ROWS)
    for result in session.scalars(results):
        if result:
            yield from _files(result["model"])
    manifests = select(Checkpoint.manifest).join(Job, Job.id == Checkpoint.job_id).where(*there)
    for manifest in session.scalars(manifests.execution_options(yield_per=ROWS)):
        yield from _files(manifest)
    for columns in (
        select(TrajectoryStep.texts, TrajectoryStep.tokens).join(Job, Job.id == TrajectoryStep.job_id),
        select(Replay.result, Replay.tokens).join(Job, Job.id == Replay.job_id),
        select(LogChunk.artefact).join(Job, Job.id == LogChunk.job_id),
    ):
        for refs in session.execute(columns.where(*there).execution_options(yield_per=ROWS)):
            yield from (ref for ref in refs if ref)


def _files(manifest: dict[str, Any]) -> Iterable[dict[str, Any]]:
    files: dict[str, dict[str, Any]] = manifest["files"]
    return files.values()
