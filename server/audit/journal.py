"""How events get into the audit log.

A change and its event are one transaction: each writing session of the request is handed to `record_change`
before it commits. Refusals change nothing, so they are gathered in memory (refusals.py). Both wait in
`audit_pending` until `Journal.seal` takes them into the chain, which one server at a time may do.
docs/adr/0009 says why, and what a crash in between means.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path

from pydantic import ValidationError
from sqlalchemy import delete, insert, select
from sqlalchemy.orm import Session

from powermean import private_files
from powermean.audit_chain import START, is_signed, linked, sign_head
from powermean.contracts.audit import AuditEvent
from powermean.contracts.audit import AuditHead as SignedHead
from powermean.tokens import KeyPair
from server.audit.cut import HEAD_ID, cut_of
from server.audit.refusals import Refusals
from server.db.inserts import insert_row, insert_rows
from server.db.models import AuditEntry, AuditHead, AuditPending
from server.db.session import Database, database_now

log = logging.getLogger(__name__)

BATCH = 500  # events sealed in one transaction
LOOK_S = 30.0  # pause between looks for what a server that died has left
HEAD_FILE = "audit-head.json"


@dataclass
class Record:
    """The event of the request that is being served, as far as it is known, and whether it is stored."""

    event: AuditEvent
    stored: bool = False

    def note(self, given: Mapping[str, str | None], detail: Mapping[str, str | None]) -> None:
        """See `note`."""
        update: dict[str, object] = {name: value for name, value in given.items() if value is not None}
        more = {name: value for name, value in detail.items() if value is not None}
        self.event = self.event.model_copy(update={**update, "detail": self.event.detail | more})


_current: ContextVar[Record | None] = ContextVar("audit_record", default=None)


def note(
    *,
    actor: str | None = None,
    actor_name: str | None = None,
    key_id: str | None = None,
    target: str | None = None,
    project: str | None = None,
    **detail: str | None,
) -> None:
    """What the request's address does not say: what it made, who signed in, which role was given.

    Call it inside the transaction of the change. Never pass a secret.
    """
    record = _current.get()
    if record is None:
        return
    given = {"actor": actor, "actor_name": actor_name, "key_id": key_id, "target": target, "project": project}
    record.note(given, detail)


def current() -> Record | None:
    """The record of the request that is being served, for whoever hands its change to another thread."""
    return _current.get()


def store(session: Session, records: Sequence[Record]) -> None:
    """Store the events of changes that share a transaction; once it is committed, set `stored` of each."""
    if records:
        insert_rows(session, AuditPending, [_row(record) for record in records])


def _row(record: Record) -> dict[str, object]:
    return {"event": record.event.model_dump(mode="json")}


class Journal:
    """One server's way to the log. `seal` is called by a loop, and by whoever wants to read all of it."""

    def __init__(
        self, database: Database, keys: KeyPair, folder: Path, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`folder` keeps the signed head, outside the database."""
        self._database = database
        self._keys = keys
        self._head_file = folder / HEAD_FILE
        self._head = read_head(self._head_file)
        self._refusals = Refusals(clock)
        self._clock = clock
        self._owed = True  # there may be something to seal, also from before this process
        self._looked_at = clock()
        database.before_commit(self._record_change)

    @contextmanager
    def recording(self, event: AuditEvent) -> Iterator[None]:
        """What is written meanwhile is this event's change: the first transaction stores it."""
        record = Record(event)
        token = _current.set(record)
        try:
            yield
        finally:
            _current.reset(token)
            if record.stored:  # and committed by now: before that, a turn would miss it
                self._owed = True

    def _record_change(self, session: Session) -> None:
        record = _current.get()
        if record is not None and not record.stored:
            insert_row(session, AuditPending, _row(record))
            record.stored = True

    def refused(self, event: AuditEvent) -> None:
        """Remember a refusal; it is written by the next `seal`."""
        self._refusals.add(event)

    def turn(self) -> bool:
        """Seal what there is; True if there is more."""
        due = self._clock() - self._looked_at > LOOK_S
        refusals = self._refusals.take()
        if not (self._owed or refusals or due):
            return False
        return self._seal(refusals)

    def seal(self) -> None:
        """Seal everything that is committed by now."""
        more = self._seal(self._refusals.take())
        while more:
            more = self._seal([])

    def stop(self) -> None:
        """Write what is still being counted."""
        if refusals := self._refusals.take(all_of_them=True):
            self._seal(refusals)

    def head(self, session: Session) -> SignedHead:
        """The newest entry, signed."""
        return signed_head(session, self._keys)

    def _seal(self, refusals: list[AuditEvent]) -> bool:
        self._owed, self._looked_at = False, self._clock()
        try:
            with self._database.write() as session:
                sealed, more = _extend(session, refusals)
                whole = self._head is None or _holds(session, self._head, self._keys)
                head = self.head(session) if sealed else None
        except BaseException:
            self._owed = True
            self._refusals.give_back(refusals)
            raise
        if not whole:
            log.error(
                "the audit log lacks the entry that %s names: run `python -m server verify-audit`",
                self._head_file,
            )
            self._head = read_head(self._head_file)  # somebody may have moved it away, to begin anew
        elif head is not None:
            self._keep(head)
        return more

    def _keep(self, head: SignedHead) -> None:
        """In the file too, unless another server that shares the folder has been further meanwhile."""
        kept = read_head(self._head_file)
        if kept is None or kept.seq < head.seq:
            private_files.replace(self._head_file, head.model_dump_json() + "\n")
        self._head = head


def record_command(session: Session, verb: str, request: str, detail: dict[str, str]) -> None:
    """What somebody did on a server's machine, past the API: commit it with the change."""
    now = database_now(session).astimezone(UTC)
    event = AuditEvent(at=now, verb=verb, request=request, outcome="allowed", detail=detail)
    insert_row(session, AuditPending, {"event": event.model_dump(mode="json")})


def signed_head(session: Session, keys: KeyPair) -> SignedHead:
    """The newest entry in this database, signed; with the cut only if this key signed that, too.

    Readers over the API believe the cut, and anybody who may write to the database can set one.
    """
    row, cut = session.get(AuditHead, HEAD_ID), cut_of(session)
    believed = cut if cut is not None and is_signed(cut, keys.public_pem) else None
    return sign_head(keys.private_pem, *((row.seq, row.hash) if row else (0, START)), cut=believed)


def read_head(file: Path) -> SignedHead | None:
    """The head in a file; None if there is none that can be read."""
    try:
        return SignedHead.model_validate_json(file.read_text())
    except FileNotFoundError:
        return None
    except (ValidationError, OSError) as error:
        log.error("%s can't be read: %s", file, error)
        return None


def _extend(session: Session, refusals: list[AuditEvent]) -> tuple[int, bool]:
    """Append to the chain under the head's lock; how many, and whether there are more."""
    locked = select(AuditHead).where(AuditHead.id == HEAD_ID).with_for_update()
    head = session.execute(locked.execution_options(populate_existing=True)).scalar_one()
    waiting = session.scalars(select(AuditPending).order_by(AuditPending.id).limit(BATCH)).all()
    events = [AuditEvent.model_validate(one.event) for one in waiting] + refusals
    seq, previous, rows = head.seq, head.hash, []
    for event in events:
        entry = linked(event, seq + 1, previous)
        rows.append(dict(entry))
        seq, previous = entry.seq, entry.hash
    if rows:
        session.execute(insert(AuditEntry), rows)
        session.execute(delete(AuditPending).where(AuditPending.id.in_([one.id for one in waiting])))
        head.seq, head.hash = seq, previous
    return len(rows), len(waiting) == BATCH


def _holds(session: Session, head: SignedHead, keys: KeyPair) -> bool:
    """Whether the log still has the entry that the head names, or had it when this service archived it."""
    if head.seq == 0:
        return True
    cut = cut_of(session)
    if cut is not None and head.seq <= cut.seq and is_signed(cut, keys.public_pem):
        return head.seq < cut.seq or head.hash == cut.hash
    query = select(AuditEntry.hash).where(AuditEntry.seq == head.seq)
    return session.scalar(query) == head.hash
