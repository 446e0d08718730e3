"""What people's requests see of the database: the rows of their own projects, without asking for that.

A ScopedSession adds the condition to every SELECT, UPDATE and DELETE on a class that a project owns, so it
can't be forgotten. Functions that answer people take one; a plain Session does not type-check there.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import cast

from sqlalchemy import Alias, ClauseElement, Column, Insert, TextClause, event
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria
from sqlalchemy.sql.util import find_tables
from sqlalchemy.sql.visitors import ExternallyTraversible, iterate

from server.db.models import Base, OwnedByProject
from server.db.session import Database

_OWNED = [kind.__table__ for kind in Base.__subclasses__() if issubclass(kind, OwnedByProject)]
_ALL_OF_THEM = None  # instead of a set of projects


class UnscopedStatementError(RuntimeError):
    """A statement as text, or past the class on a table that projects own: a defect of its author."""


class ScopedSession(Session):
    """A session that sees what these projects own; `projects` None: what all do."""

    projects: frozenset[str] | None


@event.listens_for(ScopedSession, "do_orm_execute")
def _restrict(state: ORMExecuteState) -> None:
    assert isinstance(state.session, ScopedSession)
    projects = state.session.projects
    if projects is _ALL_OF_THEM or state.is_column_load or state.is_relationship_load:
        return
    statement = cast(ClauseElement, state.statement)
    if isinstance(statement, Insert):
        if statement.select is not None:
            raise UnscopedStatementError(str(statement))
        return
    if state.is_update and state.is_executemany:  # of rows by their keys, without a WHERE
        raise UnscopedStatementError(str(statement))
    own_key = state.bind_mapper.primary_key if state.bind_mapper else ()  # session.get() looks for these
    ways_past = filter(_passes_the_classes, iterate(statement))
    if not all(any(part is column for column in own_key) for part in ways_past):
        raise UnscopedStatementError(str(statement))
    if not state.is_orm_statement:
        if any(table in _OWNED for table in find_tables(statement)):
            raise UnscopedStatementError(str(statement))
        return
    own = sorted(projects)
    state.statement = state.statement.options(
        with_loader_criteria(OwnedByProject, lambda owned: owned.project_id.in_(own), include_aliases=True)
    )


def _passes_the_classes(part: ExternallyTraversible) -> bool:
    """Whether this part of a statement gets no condition: a text, or a column of the table itself.

    A column of the class is an annotated copy, which has another type.
    """
    if type(part) is Column:
        table = part.table
        return (table.element if isinstance(table, Alias) else table) in _OWNED
    return isinstance(part, TextClause)


class ScopedDatabase:
    """The database as the caller of a request may see it."""

    def __init__(self, database: Database, projects: frozenset[str] | None) -> None:
        self._database = database
        self._projects = projects

    @contextmanager
    def read(self) -> Iterator[ScopedSession]:
        """As Database.read."""
        with self._database.read_as(ScopedSession) as session:
            session.projects = self._projects
            yield session

    @contextmanager
    def write(self) -> Iterator[ScopedSession]:
        """As Database.write; new rows may belong to any project, so whoever adds one checks that."""
        with self._database.write_as(ScopedSession) as session:
            session.projects = self._projects
            yield session
