"""Whose the thing in a request's path is."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sqlalchemy import Select, bindparam, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from server.batcher import Batcher
from server.db.models import Dataset, Job, Project
from server.db.session import Database

# Parameter of the path -> what it is called, and the columns of its id, project and maker.
_THINGS: dict[str, tuple[str, tuple[InstrumentedAttribute[Any], ...]]] = {
    "job_id": ("job", (Job.id, Job.project_id, Job.created_by)),
    "dataset_id": ("dataset", (Dataset.id, Dataset.project_id, Dataset.created_by)),
    "project": ("project", (Project.id, Project.id)),
}
_DELETED_AT: dict[str, InstrumentedAttribute[Any]] = {"job": Job.deleted_at, "project": Project.deleted_at}


def _query(kind: str, columns: tuple[InstrumentedAttribute[Any], ...]) -> Select[Any]:
    query = select(*columns).where(columns[0].in_(bindparam("given", expanding=True)))
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


class _Name(NamedTuple):
    """A parameter of a path, and what stands there."""

    parameter: str
    given: str


def names_something(parameters: Mapping[str, object]) -> bool:
    """Whether the path names something that a project owns."""
    return not _THINGS.keys().isdisjoint(parameters)


def named_in(session: Session, parameters: Mapping[str, object]) -> Named | None:
    """The job, dataset or project that the path names; None: it names none."""
    name = _name_in(parameters)
    return name and _find(session, [name])[0]


class NamedThings:
    """Looks up what paths name, in batches: one query for each kind."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._line: Batcher[_Name, Named] = Batcher("named things", self._look)

    async def find(self, parameters: Mapping[str, object]) -> Named | None:
        """What the path names; None: it names nothing, or something that has to be looked up alone."""
        name = _name_in(parameters)
        usual = name is not None and name.given.isascii() and name.given.isprintable()
        return await self._line.ask(name) if name is not None and usual else None

    def close(self) -> None:
        """See Batcher.close."""
        self._line.close()

    def _look(self, names: Sequence[_Name]) -> list[Named]:
        with self._database.read() as session:
            return _find(session, names)


def _name_in(parameters: Mapping[str, object]) -> _Name | None:
    return next((_Name(one, str(parameters[one])) for one in _QUERIES if one in parameters), None)


def _find(session: Session, names: Sequence[_Name]) -> list[Named]:
    ids = defaultdict(set)
    for name in names:
        ids[name.parameter].add(name.given)
    found: dict[_Name, Named] = {}
    for parameter, given in ids.items():
        kind, query = _QUERIES[parameter]
        for row in session.connection().execute(query, {"given": list(given)}):
            found[_Name(parameter, row[0])] = Named(kind, *row)
    return [found.get(name) or Named(_QUERIES[name.parameter][0], name.given) for name in names]
