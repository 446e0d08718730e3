"""What projects store, summed from the rows that refer to it, and the limit on that.

Sums are made when they are asked for: nothing else has to be kept in step with uploads, reports, retention
and deletion.
"""

from collections.abc import Collection, Iterator
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, cast, func, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from powermean.contracts.storage import ProjectStorage, StorageKind, StorageUse, StoredThing
from server.db.models import (
    Checkpoint,
    Dataset,
    ForkedFiles,
    Job,
    LogChunk,
    Project,
    Replay,
    TrajectoryStep,
)
from server.errors import QuotaExceededError

LARGEST = 20
_LIMIT = select(Project.storage_limit).where(Project.id == bindparam("project"))
_UNLIMITED = (
    select(Project.id)
    .where(
        Project.id.in_(bindparam("projects", expanding=True)),
        Project.storage_limit.is_(None),
        Project.deleted_at.is_(None),
    )
    .with_for_update(read=True, key_share=True)
)


def project_storage(session: Session, project: str) -> ProjectStorage:
    """What the project stores, by kind, and its largest things."""
    things = sorted(_things(session, project), key=lambda thing: thing.bytes, reverse=True)
    uses = _uses(session, project)
    total, limit = sum(use.bytes for use in uses), storage_limit(session, project)
    return ProjectStorage(
        project=project,
        bytes=total,
        limit=limit,
        over_limit=limit is not None and total >= limit,
        uses=uses,
        largest=tuple(things[:LARGEST]),
    )


def check_room(session: Session, project: str, more: int = 0) -> None:
    """Refuse what would take a project beyond its limit: `more` bytes, or anything new where it is reached.

    Raises QuotaExceededError.
    """
    limit = storage_limit(session, project)
    if limit is None:
        return
    used = sum(use.bytes for use in _uses(session, project))
    if used >= limit or used + more > limit:
        new = f", and this would add {more:,}" if more else ""
        raise QuotaExceededError(
            f"project {project} stores {used:,} of at most {limit:,} bytes{new}",
            remedy="Delete some of it (the project's storage says what takes the space), or ask an "
            "administrator for more.",
        )


def storage_limit(session: Session, project: str) -> int | None:
    """How many bytes the project may store; None: any number."""
    limit: int | None = session.connection().execute(_LIMIT, {"project": project}).scalar()
    return limit


def without_limit(session: Session, projects: Collection[str]) -> set[str]:
    """Those of the projects that are there and may store any number of bytes.

    None of them is deleted before the transaction ends.
    """
    return set(session.connection().execute(_UNLIMITED, {"projects": list(projects)}).scalars())


def _uses(session: Session, project: str) -> tuple[StorageUse, ...]:
    models = [_model_size(result) for _, _, result in _results(session, project)]
    forks = [thing.bytes for thing in _forks(session, project)]
    return (
        _use(session, "datasets", _of_project(_size(Dataset.artefact)).where(Dataset.project_id == project)),
        _use(session, "checkpoints", _of_jobs(project, Checkpoint.job_id, Checkpoint.size)),
        StorageUse(kind="models", bytes=sum(models), count=sum(size > 0 for size in models)),
        StorageUse(kind="forks", bytes=sum(forks), count=len(forks)),
        _use(
            session,
            "trajectories",
            _of_jobs(project, TrajectoryStep.job_id, _RECORDED),
        ),
        _use(
            session,
            "replays",
            _of_jobs(project, Replay.job_id, _size(Replay.result) + _size(Replay.tokens)),
        ),
        _use(session, "logs", _of_jobs(project, LogChunk.job_id, LogChunk.size)),
    )


def _use(session: Session, kind: StorageKind, query: Select[Any]) -> StorageUse:
    size, count = session.execute(query).one()
    return StorageUse(kind=kind, bytes=int(size or 0), count=count)


def _of_project(size: Any) -> Select[Any]:
    return select(func.sum(size), func.count())


def _of_jobs(project: str, job_id: InstrumentedAttribute[str], size: Any) -> Select[Any]:
    return _of_project(size).join(Job, Job.id == job_id).where(*_living(project))


def _living(project: str) -> tuple[ColumnElement[bool], ...]:
    return Job.project_id == project, Job.deleted_at.is_(None)


def _size(ref: InstrumentedAttribute[Any]) -> ColumnElement[int]:
    """The size in a column of references; null where there is none."""
    return cast(ref["size"].as_string(), BigInteger)


_RECORDED = func.coalesce(_size(TrajectoryStep.texts), 0) + func.coalesce(_size(TrajectoryStep.tokens), 0)


def _results(session: Session, project: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    query = select(Job.id, Job.name, Job.result).where(*_living(project), Job.state == "finished")
    for job_id, name, result in session.execute(query):
        if result:
            yield job_id, name, result


def _model_size(result: dict[str, Any]) -> int:
    return sum(ref["size"] for ref in result["model"]["files"].values())


def _forks(session: Session, project: str) -> Iterator[StoredThing]:
    """The forks that keep files no other job refers to any more; what two of them keep is the older one's."""
    forks = select(Job.id, Job.name, ForkedFiles.files).join(ForkedFiles, ForkedFiles.job_id == Job.id)
    rows = session.execute(forks.where(*_living(project)).order_by(Job.id)).all()
    if not rows:
        return
    owners = select(ForkedFiles.owner).join(Job, Job.id == ForkedFiles.job_id).where(*_living(project))
    there = Job.id.in_(owners), Job.deleted_at.is_(None)
    manifests = [result["model"] for result in session.scalars(select(Job.result).where(*there)) if result]
    manifests += session.scalars(
        select(Checkpoint.manifest).join(Job, Job.id == Checkpoint.job_id).where(*there)
    )
    counted = {ref["key"] for manifest in manifests for ref in manifest["files"].values()}
    sizes: dict[tuple[str, str], int] = {}
    for job_id, name, files in rows:
        new = {ref["key"]: ref["size"] for ref in files if ref["key"] not in counted}
        counted |= new.keys()
        sizes[job_id, name] = sizes.get((job_id, name), 0) + sum(new.values())
    for (job_id, name), size in sizes.items():
        if size:
            yield StoredThing(kind="forks", id=job_id, name=name, bytes=size)


def _things(session: Session, project: str) -> Iterator[StoredThing]:
    datasets = select(Dataset.id, Dataset.name, _size(Dataset.artefact)).where(Dataset.project_id == project)
    for dataset_id, name, size in session.execute(
        datasets.order_by(_size(Dataset.artefact).desc()).limit(LARGEST)
    ):
        yield StoredThing(kind="datasets", id=dataset_id, name=name, bytes=size)
    checkpoints = select(Job.id, Job.name, Checkpoint.step, Checkpoint.size, Checkpoint.pinned)
    checkpoints = checkpoints.join(Checkpoint, Checkpoint.job_id == Job.id).where(*_living(project))
    for job_id, name, step, size, pinned in session.execute(
        checkpoints.order_by(Checkpoint.size.desc()).limit(LARGEST)
    ):
        yield StoredThing(kind="checkpoints", id=job_id, name=name, bytes=size, step=step, pinned=pinned)
    for job_id, name, result in _results(session, project):
        if size := _model_size(result):
            yield StoredThing(kind="models", id=job_id, name=name, bytes=size)
    yield from _forks(session, project)
    recorded = func.sum(_RECORDED)
    steps = select(Job.id, Job.name, recorded).join(TrajectoryStep, TrajectoryStep.job_id == Job.id)
    steps = steps.where(*_living(project)).group_by(Job.id, Job.name).order_by(recorded.desc()).limit(LARGEST)
    for job_id, name, size in session.execute(steps):
        if size:
            yield StoredThing(kind="trajectories", id=job_id, name=name, bytes=int(size))
