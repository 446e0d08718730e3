"""What is kept in the artefact store, and what is to be removed from it."""

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from server.db.models.base import Base, OwnedByProject


class Dataset(OwnedByProject, Base):
    """An uploaded JSONL dataset. A project has each content once; another's copy has another id."""

    __tablename__ = "datasets"
    __table_args__ = (Index("uq_datasets_content", "project_id", "sha256", unique=True),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    rows: Mapped[int]
    fields: Mapped[list[Any]]
    lacking: Mapped[dict[str, Any]]  # field that some rows lack -> first line without it
    artefact: Mapped[dict[str, Any]]
    sha256: Mapped[str] = mapped_column(String(64))
    created_by: Mapped[str | None] = mapped_column(ForeignKey("people.id"))  # null: by an older version
    created_at: Mapped[datetime]


class LogChunk(Base):
    """A piece of an attempt's log: bytes [offset, offset + size) of it, in the artefact store.

    Each node's log has its own range of offsets: artefacts/logs.py.
    """

    __tablename__ = "log_chunks"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    size: Mapped[int]
    artefact: Mapped[dict[str, Any]]


class RemovedPart(Base):
    """What retention has removed of a job: `part` is texts, tokens or logs."""

    __tablename__ = "removed_parts"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    part: Mapped[str] = mapped_column(String(16), primary_key=True)
    removed_at: Mapped[datetime]


class Garbage(Base):
    """An object in the artefact store to be deleted, because nothing refers to it any more.

    A key that ends in / stands for all below it. What a row refers to is kept, whatever this table says.
    """

    __tablename__ = "garbage"

    key: Mapped[str] = mapped_column(String(500), primary_key=True)
    created_at: Mapped[datetime]
