"""The rows of what was deleted, removed a few at a time.

Which tables hold them is read from their foreign keys, so that a new table is covered. An object of the
artefact store goes with the last transaction's garbage.
"""

from collections.abc import Iterator

from sqlalchemy import ColumnElement, CursorResult, Table, delete, or_, select, tuple_
from sqlalchemy.orm import Session

from server.db.inserts import upsert
from server.db.models import Allocation, Attempt, Base, ForkedFiles, Garbage, Job, Outbox, Project, Replay
from server.db.session import database_now
from server.jobs import hours

BATCH = 2000  # rows in a transaction: tens of milliseconds

_TABLES = Base.metadata.sorted_tables
_JOBS: Table = Base.metadata.tables["jobs"]


def deleted_job(session: Session) -> str | None:
    """A job that is marked as deleted, and holds nothing on a node any more; the first marked comes first."""
    holds = (
        select(Allocation.id)
        .join(Attempt, Attempt.id == Allocation.attempt_id)
        .where(Attempt.job_id == Job.id, Allocation.released_at.is_(None))
    )
    query = select(Job.id).where(Job.deleted_at.is_not(None), ~holds.exists())
    return session.scalars(query.order_by(Job.deleted_at, Job.id).limit(1)).first()


def remove_some(session: Session, job_id: str) -> int:
    """Remove up to BATCH rows of a deleted job. 0: there were none left, and now its own row is gone too.

    What it held on nodes stays on record.
    """
    hours.keep(session, job_id)
    _release_forked(session, job_id)
    for table, condition in _parts(job_id):
        if removed := _remove(session, table, condition, BATCH):
            return removed
    session.execute(delete(_JOBS).where(_JOBS.c.id == job_id))
    upsert(session, Garbage, [{"key": f"jobs/{job_id}/", "created_at": database_now(session)}])
    return 0


def _release_forked(session: Session, job_id: str) -> None:
    """What the job began with is no longer kept for it; its owner or another fork may have it still."""
    found = session.scalars(select(ForkedFiles).where(ForkedFiles.job_id == job_id)).all()
    now = database_now(session)
    keys = {ref["key"] for row in found for ref in row.files}
    upsert(session, Garbage, [{"key": key, "created_at": now} for key in sorted(keys)])
    for row in found:
        session.delete(row)
    session.flush()


def empty_projects(session: Session) -> list[str]:
    """The projects that are marked as deleted and have no job left."""
    has_jobs = select(Job.id).where(Job.project_id == Project.id).exists()
    query = select(Project.id).where(Project.deleted_at.is_not(None), ~has_jobs)
    return list(session.scalars(query.order_by(Project.id)))


def remove_project(session: Session, project: str) -> None:
    """Remove the row of an empty project."""
    hours.forget_project(session, project)
    session.execute(delete(Project).where(Project.id == project))


def orphaned_messages(session: Session, limit: int) -> list[int]:
    """Settled messages whose job, attempt or replay is gone."""
    known = or_(
        *(select(model.id).where(model.id == Outbox.subject).exists() for model in (Job, Attempt, Replay))
    )
    query = select(Outbox.id).where(Outbox.done_at.is_not(None), ~known).limit(limit)
    return list(session.scalars(query))


def _parts(job_id: str) -> Iterator[tuple[Table, ColumnElement[bool]]]:
    """Every table with rows of the job, those that refer to others first, and the condition on its rows."""
    outbox: Table = Base.metadata.tables["outbox"]
    subjects = [select(model.id).where(model.job_id == job_id) for model in (Attempt, Replay)]
    yield (
        outbox,
        or_(outbox.c.subject == job_id, *(outbox.c.subject.in_(subject) for subject in subjects)),
    )
    belongs: dict[Table, ColumnElement[bool]] = {}
    for table in _TABLES:
        for key in sorted(table.foreign_keys, key=lambda key: key.parent.name):
            of = key.column.table
            if table is _JOBS or (of is not _JOBS and of not in belongs):
                continue
            column = key.parent
            condition = column == job_id if of is _JOBS else column.in_(select(key.column).where(belongs[of]))
            belongs[table] = condition
            break
    yield from reversed(belongs.items())


def _remove(session: Session, table: Table, condition: ColumnElement[bool], limit: int) -> int:
    key = tuple(table.primary_key)
    some = select(*key).where(condition).limit(limit)
    chosen = tuple_(*key).in_(some) if len(key) > 1 else key[0].in_(some)
    result = session.execute(delete(table).where(chosen))
    assert isinstance(result, CursorResult)
    return result.rowcount
