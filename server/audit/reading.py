"""The audit log as people read it: filtered pages, the whole log in order, and whether it is unbroken."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from powermean import audit_archive, audit_chain
from powermean.audit_chain import is_signed
from powermean.contracts.audit import AuditEntry, AuditHead, AuditPage, Outcome
from server.audit.cut import HEAD_ID, cut_of
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
    with database.read() as session:
        cut = cut_of(session)
    after = cut.seq if cut else 0  # what is archived may not be deleted yet
    while True:
        query = _matching(wanted).where(Row.seq > after).order_by(Row.seq).limit(EXPORT_ROWS)
        with database.read() as session:
            found = [_entry(row) for row in session.scalars(query)]
        if not found:
            return
        after = found[-1].seq
        yield found


def verify(
    database: Database, head: AuditHead | None, archives: Sequence[Path] = (), public_pem: str | None = None
) -> audit_chain.Verdict:
    """Walk the chain in the database, after what is archived or through it; `head`: an earlier, signed one.

    Without the archives, `public_pem` has to have signed that there are some.
    """
    with database.read() as session:  # before the walk: servers may append meanwhile
        own = session.get(models.AuditHead, HEAD_ID)
        cut = cut_of(session)
    if public_pem is not None and cut is not None and not archives and not is_signed(cut, public_pem):
        broken = audit_chain.Break(cut.seq, "and all before it were removed without this server's signature")
        return audit_chain.Verdict(cut.seq, cut.hash, broken)
    log = chain.from_iterable(entries(database, AuditFilter()))
    verdict = audit_archive.verify(archives, log, head, cut)
    if verdict.broken is None and (own is None or own.seq > verdict.entries):
        broken = audit_chain.Break(verdict.entries + 1, "is missing: the table audit_head names a later one")
        return replace(verdict, broken=broken)
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
