"""The audit log as people read it: filtered pages, the whole log in order, and whether it is unbroken."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from powermean import audit_chain
from powermean.contracts.audit import AuditEntry, AuditHead, AuditPage, Outcome
from server.db import models
from server.db.models import AuditEntry as Row
from server.db.session import Database
from server.errors import InvalidInputError

EXPORT_ROWS = 500  # read at a time


@dataclass(frozen=True)
class AuditFilter:
    """Which entries; None: all."""

    project: str | None = None
    actor: str | None = None  # id or name
    verb: str | None = None  # such as job.submit, or the part before the point
    outcome: Outcome | None = None
    since: datetime | None = None
    until: datetime | None = None

    def of(self, project: str) -> "AuditFilter":
        """The same, of this project alone."""
        return replace(self, project=project)


def page(session: Session, wanted: AuditFilter, before: int | None, limit: int) -> AuditPage:
    """The newest entries before number `before`."""
    query = _matching(wanted).order_by(Row.seq.desc()).limit(limit + 1)
    if before is not None:
        query = query.where(Row.seq < before)
    rows = session.scalars(query).all()
    items = tuple(_entry(row) for row in rows[:limit])
    return AuditPage(items=items, next=items[-1].seq if len(rows) > limit else None)


def entries(database: Database, wanted: AuditFilter) -> Iterator[list[AuditEntry]]:
    """All matching entries, oldest first, in batches; no transaction is open while one is used."""
    after = 0
    while True:
        query = _matching(wanted).where(Row.seq > after).order_by(Row.seq).limit(EXPORT_ROWS)
        with database.read() as session:
            found = [_entry(row) for row in session.scalars(query)]
        if not found:
            return
        after = found[-1].seq
        yield found


def verify(database: Database, head: AuditHead | None) -> audit_chain.Verdict:
    """Walk the chain in the database; `head`: an earlier, signed one."""
    verdict = audit_chain.verify(chain.from_iterable(entries(database, AuditFilter())), head)
    with database.read() as session:
        own = session.get(models.AuditHead, 1)
    if verdict.broken is None and (own is None or own.seq > verdict.entries):
        broken = audit_chain.Break(verdict.entries + 1, "is missing: the table audit_head names a later one")
        return audit_chain.Verdict(verdict.entries, verdict.hash, broken)
    return verdict


def moment(given: datetime | None, field: str) -> datetime | None:
    """The time in UTC, which is also what one without a zone is in. Raises InvalidInputError."""
    if given is None or given.tzinfo is None:
        return given and given.replace(tzinfo=UTC)
    try:
        return given.astimezone(UTC)
    except OverflowError as error:
        raise InvalidInputError.at(field, "is no time that a calendar has") from error


def _matching(wanted: AuditFilter) -> Select[Row]:
    query = select(Row)
    if wanted.project is not None:
        query = query.where(Row.project == wanted.project)
    if wanted.actor is not None:
        query = query.where((Row.actor == wanted.actor) | (Row.actor_name == wanted.actor))
    if wanted.verb is not None:
        query = query.where(
            (Row.verb == wanted.verb) | Row.verb.startswith(f"{wanted.verb}.", autoescape=True)
        )
    if wanted.outcome is not None:
        query = query.where(Row.outcome == wanted.outcome)
    if wanted.since is not None:
        query = query.where(Row.at >= wanted.since)
    if wanted.until is not None:
        query = query.where(Row.at < wanted.until)
    return query


def _entry(row: Row) -> AuditEntry:
    return AuditEntry.model_validate({name: getattr(row, name) for name in AuditEntry.model_fields})
