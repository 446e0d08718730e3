"""Pools as the leader's file declares them, and the pilots that they were asked for."""

from datetime import datetime
from typing import Any

from sqlalchemy import Boolean, Index, Integer, String, false, text
from sqlalchemy.orm import Mapped, mapped_column

from server.db.models.base import Base


class PoolStatus(Base):
    """A declared pool, for every server's views, and what is wrong with it."""

    __tablename__ = "pools"

    name: Mapped[str] = mapped_column(String(24), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    shape: Mapped[dict[str, Any]]
    min: Mapped[int] = mapped_column(Integer)
    max: Mapped[int] = mapped_column(Integer)
    error: Mapped[str | None] = mapped_column(String(500))  # why it starts nothing now, for people


class Pilot(Base):
    """A node that a pool was asked for. The row is written before the engine is asked."""

    __tablename__ = "pilots"
    __table_args__ = (
        Index(
            "ix_pilots_living",
            "pool",
            postgresql_where=text("state <> 'ended'"),
            sqlite_where=text("state <> 'ended'"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    pool: Mapped[str] = mapped_column(String(24))  # not a key: outlives the declaration
    node_id: Mapped[str] = mapped_column(String(64), index=True)
    external_id: Mapped[str | None] = mapped_column(String(100))  # null: the engine has not confirmed it
    state: Mapped[str] = mapped_column(String(16))  # contracts.pools.PilotPhase
    reason: Mapped[str] = mapped_column(String(300), default="", server_default="")  # the engine's words
    leaves: Mapped[str | None] = mapped_column(String(200))  # why the engine is to end it
    failed: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())  # never was a node
    shape: Mapped[dict[str, Any]]
    key_id: Mapped[str | None] = mapped_column(String(32))  # of its node token
    unneeded_since: Mapped[datetime | None]  # since when no work needs it
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    ends_at: Mapped[datetime | None]  # its time is over then, as far as the engine says
    ended_at: Mapped[datetime | None]
