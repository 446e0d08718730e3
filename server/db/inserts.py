"""Rows inserted at once, without the session's bookkeeping, the same for SQLite and Postgres."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, cast

from sqlalchemy import Table, select
from sqlalchemy.dialects.postgresql import Insert as PostgresInsert
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.dialects.sqlite import Insert as SqliteInsert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session
from sqlalchemy.sql.dml import ReturningInsert

from server.db.models import Base


def insert_row(session: Session, model: type[Base], row: Mapping[str, Any]) -> None:
    """Insert a row at once, without the session's bookkeeping: changed objects are not flushed before."""
    session.connection().execute(_insert_into(session.get_bind().dialect.name, model), dict(row))


def insert_new(session: Session, model: type[Base], row: Mapping[str, Any], unique: tuple[str, ...]) -> bool:
    """As insert_row, unless a row has the same values in the `unique` columns; whether it was inserted."""
    statement = _insert_one_unless(session.get_bind().dialect.name, model, unique)
    return session.connection().execute(statement, dict(row)).first() is not None


def insert_rows(session: Session, model: type[Base], rows: Sequence[Mapping[str, Any]]) -> None:
    """insert_row for several with the same columns, in one call of the driver."""
    session.connection().execute(_insert_into(session.get_bind().dialect.name, model), [*map(dict, rows)])


def insert_those_new(
    session: Session, model: type[Base], rows: Sequence[Mapping[str, Any]], unique: tuple[str, ...]
) -> set[str]:
    """insert_new for several with the same columns; the ids of those that were inserted."""
    statement = _insert_unless(session.get_bind().dialect.name, model, unique)
    connection, ids = session.connection(), [str(row["id"]) for row in rows]
    if connection.execute(statement, [*map(dict, rows)]).rowcount == len(rows):
        return set(ids)
    key = cast(Table, model.__table__).c.id
    return set(connection.execute(select(key).where(key.in_(ids))).scalars())


@cache
def _insert_into(dialect: str, model: type[Base]) -> SqliteInsert | PostgresInsert:
    """Made once: that takes as long as running it."""
    return (sqlite_insert if dialect == "sqlite" else postgres_insert)(cast(Table, model.__table__))


@cache
def _insert_unless(dialect: str, model: type[Base], unique: tuple[str, ...]) -> SqliteInsert | PostgresInsert:
    statement = _insert_into(dialect, model).on_conflict_do_nothing(index_elements=unique)
    return statement.execution_options(preserve_rowcount=True)


@cache
def _insert_one_unless(dialect: str, model: type[Base], unique: tuple[str, ...]) -> ReturningInsert[Any]:
    table = cast(Table, model.__table__)
    return _insert_unless(dialect, model, unique).returning(*table.primary_key)


def upsert(
    session: Session,
    model: type[Base],
    rows: Sequence[Mapping[str, Any]],
    *,
    replace: Sequence[str] = (),
) -> None:
    """Insert `rows`, whose keys are column names.

    If the primary key exists, set the columns in `replace`, or leave the row unchanged if `replace` is empty.
    """
    if not rows:
        return
    table = model.__table__
    keys = [column.name for column in table.primary_key]
    statement = _insert_into(session.get_bind().dialect.name, model)
    if replace:
        statement = statement.on_conflict_do_update(
            index_elements=keys, set_={name: statement.excluded[name] for name in replace}
        )
    else:
        statement = statement.on_conflict_do_nothing(index_elements=keys)
    session.execute(statement, [dict(row) for row in rows])
