"""Deleting a project, and what it holds."""

from collections.abc import Iterator

from sqlalchemy import Column, Table, delete, func, select, update
from sqlalchemy.orm import Session

from powermean.contracts.api import FieldError, JobState
from powermean.contracts.replays import ReplayState
from server.db.inserts import upsert
from server.db.models import ApiKey, Base, BrowserSession, Dataset, Garbage, Job, Project, Replay
from server.db.session import changes, database_now
from server.errors import ConflictError
from server.storage.deletion import mark_deleted

_JOBS: Table = Base.metadata.tables["jobs"]
_PEOPLE: Table = Base.metadata.tables["people"]


def delete_project(session: Session, project: str, *, cascade: bool) -> None:
    """Delete a project that holds nothing, or with `cascade` one whose jobs have all ended, with everything.

    Its name is free when the last rows of its jobs are gone. Nobody's account goes with it.

    Raises ConflictError listing what it holds, or what still runs.
    """
    row = session.execute(select(Project).where(Project.id == project).with_for_update()).scalar_one()
    if running := _still_runs(session, project):
        raise ConflictError(
            f"project {project} still has jobs or replays that have not ended",
            remedy="Cancel them, or wait until they have ended.",
            fields=running,
        )
    held = _held(session, project)
    if held and not cascade:
        what = ", ".join(f"{field.message} {field.path}" for field in held)
        raise ConflictError(
            f"project {project} still holds {what}",
            remedy="Delete them first, or ask with cascade=true to delete all of it.",
            fields=held,
        )
    _delete_all(session, project)
    row.deleted_at = database_now(session)
    changes(session).swept = True


def _still_runs(session: Session, project: str) -> list[FieldError]:
    final = [state for state in JobState if state.final]
    jobs = select(Job.id, Job.state).where(Job.project_id == project, Job.state.not_in(final))
    replays = select(Replay.id, Replay.state).join(Job, Job.id == Replay.job_id)
    replays = replays.where(Job.project_id == project, Replay.state == ReplayState.RUNNING)
    return [
        FieldError(path=f"{kind}.{one}", message=f"is {state}")
        for kind, query in (("jobs", jobs), ("replays", replays))
        for one, state in session.execute(query.limit(20))
    ]


def _held(session: Session, project: str) -> list[FieldError]:
    """How many rows of each table the project has, as far as people see them."""
    held = []
    for table, column in _references():
        query = select(func.count()).select_from(table).where(column == project)
        if table is _JOBS:
            query = query.where(_JOBS.c.deleted_at.is_(None))
        if table is not _PEOPLE and (count := session.scalar(query)):
            held.append(FieldError(path=table.name, message=str(count)))
    return held


def _delete_all(session: Session, project: str) -> None:
    now = database_now(session)
    for job in session.scalars(select(Job).where(Job.project_id == project, Job.deleted_at.is_(None))):
        mark_deleted(session, job)
    files = session.scalars(select(Dataset.artefact).where(Dataset.project_id == project))
    upsert(session, Garbage, [{"key": ref["key"], "created_at": now} for ref in files])
    keys = select(ApiKey.id).where(ApiKey.project_id == project)
    session.execute(delete(BrowserSession).where(BrowserSession.key_id.in_(keys)))
    session.flush()
    for table, column in _references():
        if table is _PEOPLE:
            session.execute(update(table).where(column == project).values({column: None}))
        elif table is not _JOBS:
            session.execute(delete(table).where(column == project))


def _references() -> Iterator[tuple[Table, Column[str]]]:
    """Every column that refers to a project; tables that refer to others come first."""
    for table in reversed(Base.metadata.sorted_tables):
        for key in table.foreign_keys:
            if key.column.table.name == Project.__tablename__:
                yield table, key.parent
