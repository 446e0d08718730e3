"""Whose the thing in a request's path is."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from server.db.models import Dataset, Job, Project

# Parameter of the path -> what it is called, and the columns of its id, project and maker.
_THINGS: dict[str, tuple[str, tuple[InstrumentedAttribute[Any], ...]]] = {
    "job_id": ("job", (Job.id, Job.project_id, Job.created_by)),
    "dataset_id": ("dataset", (Dataset.id, Dataset.project_id, Dataset.created_by)),
    "project": ("project", (Project.id, Project.id)),
}
_DELETED_AT: dict[str, InstrumentedAttribute[Any]] = {"job": Job.deleted_at, "project": Project.deleted_at}


def _query(kind: str, columns: tuple[InstrumentedAttribute[Any], ...]) -> Select[Any]:
    query = select(*columns).where(columns[0] == bindparam("given"))
    deleted_at = _DELETED_AT.get(kind)
    return query if deleted_at is None else query.where(deleted_at.is_(None))


_QUERIES = {parameter: (kind, _query(kind, columns)) for parameter, (kind, columns) in _THINGS.items()}


@dataclass(frozen=True)
class Named:
    """A thing's name in the path, and the thing, if there is one."""

    kind: str
    id: str
    project: str | None = None
    owner: str | None = None


def names_something(parameters: Mapping[str, object]) -> bool:
    """Whether the path names something that a project owns."""
    return not _THINGS.keys().isdisjoint(parameters)


def named_in(session: Session, parameters: Mapping[str, object]) -> Named | None:
    """The job, dataset or project that the path names; None: it names none."""
    for parameter, (kind, query) in _QUERIES.items():
        if parameter in parameters:
            given = str(parameters[parameter])
            row = session.connection().execute(query, {"given": given}).one_or_none()
            return Named(kind, given) if row is None else Named(kind, given, *row[1:])
    return None
