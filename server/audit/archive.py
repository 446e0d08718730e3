"""Archiving the audit log: its oldest entries go into a file, and then out of the database.

It is done on a server's machine, with the key that signs, and not over the API: whoever steals an
administrator's key must not be able to remove what they did. A crash loses nothing: entries leave the
database only when the file is on the disk and was read back, and the next run removes what a crash left.
"""

import filecmp
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import chain, takewhile
from pathlib import Path

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from powermean import audit_archive, audit_chain, private_files
from powermean.contracts.audit import AuditCut, AuditEntry
from powermean.contracts.audit import AuditHead as SignedHead
from powermean.disk import sync_folder
from powermean.errors import PowermeanError
from powermean.tokens import KeyPair
from server.audit import reading
from server.audit.cut import HEAD_ID, cut_of
from server.audit.journal import record_command
from server.audit.reading import AuditFilter
from server.db.models import AuditEntry as Row
from server.db.models import AuditHead
from server.db.session import Database

VERB, REQUEST = "audit.archive", "python -m server archive-audit"  # in the audit log
BATCH = 5000  # entries removed in one transaction


class ArchiveError(PowermeanError):
    """The log could not be archived; nothing was removed from it."""


@dataclass(frozen=True)
class Archived:
    """What one run has moved into a file."""

    first: int
    last: int
    file: Path
    head: Path  # the signed end of the file


def archive(
    database: Database,
    keys: KeyPair,
    kept: SignedHead | None,
    folder: Path,
    before: datetime,
    archives: Sequence[Path] = (),
) -> Archived | None:
    """Move the entries from before that moment into a file in `folder`; None if there are none.

    The whole log is checked first, as `reading.verify` does, against the head that was kept. Raises
    ArchiveError and OSError.
    """
    verdict = reading.verify(database, kept, archives, keys.public_pem)
    if verdict.broken is not None:
        raise ArchiveError(
            f"the audit log is not as it was written: {verdict.said(kept)}",
            remedy="`python -m server verify-audit` says it again. Find out why first.",
        )
    with database.read() as session:
        cut = cut_of(session)
        last = _last_before(session, before)
    first = (cut.seq if cut else 0) + 1
    if last < first:
        _remove_archived(database)  # what a run that was killed has left
        return None
    file = folder / f"audit-{first}-{last}.jsonl"
    wanted = chain.from_iterable(reading.entries(database, AuditFilter()))
    _write(file, takewhile(lambda entry: entry.seq <= last, wanted))
    walked = audit_chain.verify(audit_archive.read([file]), None, cut)
    if walked.broken is not None or walked.entries != last:
        raise ArchiveError(f"{file} does not hold what was written into it", remedy="Check that disk.")
    signed = audit_chain.sign_head(keys.private_pem, last, walked.hash)
    head = file.with_suffix(".head.json")
    private_files.replace(head, signed.model_dump_json() + "\n")
    _cut(database, audit_chain.sign_cut(keys.private_pem, last, walked.hash), first, file)
    _remove_archived(database)
    return Archived(first, last, file, head)


def sign_again(session: Session, keys: KeyPair, before: str) -> None:
    """After a restore, which may have made new keys; but not a cut that the public key `before` did not sign:
    somebody forged it."""
    cut = cut_of(session)
    if cut is not None and audit_chain.is_signed(cut, before):
        row = session.get_one(AuditHead, HEAD_ID)
        row.cut_signature = audit_chain.sign_cut(keys.private_pem, cut.seq, cut.hash).signature


def _last_before(session: Session, before: datetime) -> int:
    """Number of the newest entry before the first that is not older."""
    newer = session.scalar(select(func.min(Row.seq)).where(Row.at >= before))
    if newer is not None:
        return newer - 1
    return session.get_one(AuditHead, HEAD_ID).seq


def _write(file: Path, entries: Iterable[AuditEntry]) -> None:
    """Raises ArchiveError for a file that is there, unless it holds just this."""
    descriptor, name = tempfile.mkstemp(".part", f".{file.name}.", file.parent)  # others may write this, too
    part = Path(name)
    try:
        with os.fdopen(descriptor, "w") as lines:
            for entry in entries:
                lines.write(f"{entry.model_dump_json()}\n")
            lines.flush()
            os.fsync(lines.fileno())
        os.link(part, file)
    except FileExistsError:
        if not filecmp.cmp(file, part, shallow=False):
            raise ArchiveError(f"{file} is there already, with other contents") from None
    finally:
        part.unlink()
    sync_folder(file.parent)


def _cut(database: Database, cut: AuditCut, first: int, file: Path) -> None:
    """From now on the log begins after `cut`, and says so in its next entry."""
    with database.write() as session:
        row = session.execute(select(AuditHead).where(AuditHead.id == HEAD_ID).with_for_update()).scalar_one()
        if row.cut_seq != first - 1:
            raise ArchiveError("the audit log is being archived by another process")
        row.cut_seq, row.cut_hash, row.cut_signature = cut.seq, cut.hash, cut.signature
        detail = {"entries": f"{first} to {cut.seq}", "file": file.name}
        record_command(session, VERB, REQUEST, detail)


def _remove_archived(database: Database) -> None:
    """Delete what the cut allows, the oldest first, in short transactions."""
    while True:
        with database.write() as session:
            cut = cut_of(session)
            archived = select(Row.seq).where(Row.seq <= (cut.seq if cut else 0)).order_by(Row.seq)
            found = session.scalars(archived.limit(BATCH)).all()
            if found:
                session.execute(delete(Row).where(Row.seq <= found[-1]))
        if len(found) < BATCH:
            return
