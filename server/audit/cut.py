"""Where the audit log begins now: archive.py moved what came before into a file."""

from sqlalchemy.orm import Session

from powermean.contracts.audit import AuditCut
from server.db.models import AuditHead

HEAD_ID = 1


def cut_of(session: Session) -> AuditCut | None:
    """The newest entry that was archived; None: the log is whole."""
    row = session.get(AuditHead, HEAD_ID)
    if row is None or row.cut_seq == 0:
        return None
    return AuditCut(seq=row.cut_seq, hash=row.cut_hash, signature=row.cut_signature or "")
