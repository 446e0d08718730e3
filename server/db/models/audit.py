"""The audit log."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from server.db.models.base import Base


class AuditPending(Base):
    """An event, committed with its change; server/audit/journal.py moves it into the chain."""

    __tablename__ = "audit_pending"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    event: Mapped[dict[str, Any]]


class AuditEntry(Base):
    """An entry of the audit log. Triggers refuse to change or delete one, so it refers to no other row."""

    __tablename__ = "audit_entries"
    __table_args__ = (
        Index("ix_audit_entries_project_seq", "project", "seq"),
        Index("ix_audit_entries_actor_seq", "actor", "seq"),
        Index("ix_audit_entries_at", "at"),
    )

    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str | None] = mapped_column(String(64))
    actor_name: Mapped[str | None] = mapped_column(String(120))
    key_id: Mapped[str | None] = mapped_column(String(32))
    address: Mapped[str | None] = mapped_column(String(64))
    verb: Mapped[str] = mapped_column(String(64))
    request: Mapped[str] = mapped_column(String(200))
    target: Mapped[str | None] = mapped_column(String(200))
    project: Mapped[str | None] = mapped_column(String(63))
    outcome: Mapped[str] = mapped_column(String(8))  # allowed, refused
    status: Mapped[int | None]
    count: Mapped[int]
    detail: Mapped[dict[str, Any]]
    request_id: Mapped[str | None] = mapped_column(String(32))
    previous: Mapped[str] = mapped_column(String(64))
    hash: Mapped[str] = mapped_column(String(64))


class AuditHead(Base):
    """The one row that whoever appends to the audit log locks: where its chain ends, and where it begins now.

    The entries up to `cut_seq` were archived, and may be deleted: server/audit/archive.py.
    """

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))
    cut_seq: Mapped[int] = mapped_column(BigInteger, server_default="0")
    cut_hash: Mapped[str] = mapped_column(String(64), server_default="0" * 64)
    cut_signature: Mapped[str | None] = mapped_column(String(1000))
