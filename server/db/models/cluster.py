"""Nodes, engine services, messages to nodes, the servers, and who leads."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, ColumnElement, ForeignKey, Index, Integer, String, case
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column

from powermean.contracts.pools import BEING_ENDED
from server.db.models.base import Base

DRAINING = "draining"
LEAVING = f"its allocation is {BEING_ENDED}"


class EngineService(Base):
    """A rollout engine that an administrator declared, its own allocation, and its node's last report."""

    __tablename__ = "engines"
    __table_args__ = (Index("uq_engines_name", "name", unique=True),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    spec: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(String(16))  # waiting, starting, ready, failed, stopping
    node: Mapped[str | None] = mapped_column(String(64))
    gpu_uuids: Mapped[list[Any]]
    url: Mapped[str | None] = mapped_column(String(300))
    generation: Mapped[int] = mapped_column(Integer, default=0)  # of its placement
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    why: Mapped[str | None] = mapped_column(String(200))  # what it waits for, for people
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_by: Mapped[str] = mapped_column(ForeignKey("people.id"))
    created_at: Mapped[datetime]
    seen_at: Mapped[datetime | None]


class Node(Base):
    """A node and its last report."""

    __tablename__ = "nodes"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    instance: Mapped[str | None] = mapped_column(String(64))  # the worker that has the name
    report: Mapped[dict[str, Any]]
    report_number: Mapped[int | None] = mapped_column(BigInteger)  # of that report; null: it has none
    seen_at: Mapped[datetime]
    rival: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # the last one refused
    # What an administrator or its pool has ordered, which outlives what its worker says.
    ordered_state: Mapped[str | None] = mapped_column("closed", String(8))  # cordoned or draining
    ordered_state_reason: Mapped[str | None] = mapped_column("closed_reason", String(200))  # for people
    drain_at: Mapped[datetime | None]  # from then on it drains
    gpus_since: Mapped[datetime | None]  # when it first reported the newest of its GPUs

    @hybrid_property
    def closed(self) -> str | None:
        """Cordoned or draining: it takes nothing new. It drains while its worker says that it leaves, too."""
        return DRAINING if self.report.get("leaving") else self.ordered_state

    @closed.inplace.expression
    @classmethod
    def _closed(cls) -> ColumnElement[str | None]:
        return case((cls.report["leaving"].as_boolean(), DRAINING), else_=cls.ordered_state)

    @property
    def closed_reason(self) -> str | None:
        """Why, for people."""
        return LEAVING if self.closed != self.ordered_state else self.ordered_state_reason


class NodeSample(Base):
    """What a node used in ten seconds, for an hour; cluster/samples.py has its form."""

    __tablename__ = "node_samples"
    __table_args__ = (Index("ix_node_samples_at", "at"), {"sqlite_with_rowid": False})

    node_id: Mapped[str] = mapped_column(String(64), primary_key=True)  # not a key: outlives the node
    at: Mapped[datetime] = mapped_column(primary_key=True)
    use: Mapped[dict[str, Any]]


class Outbox(Base):
    """An outgoing Celery message, written in the transaction that causes it; re-sent until `done_at`."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_owed", "done_at", "next_send_at"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    task: Mapped[str] = mapped_column(String(64))
    queue: Mapped[str | None] = mapped_column(String(80))  # null: any live node; of a check: the last one
    subject: Mapped[str] = mapped_column(String(48), index=True)  # id of the task's job or attempt
    sends: Mapped[int] = mapped_column(Integer, default=0)
    next_send_at: Mapped[datetime]
    created_at: Mapped[datetime]
    done_at: Mapped[datetime | None]


class ServerProcess(Base):
    """A server process; it writes when it was last well, and removes its row when it stops in order."""

    __tablename__ = "servers"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)  # also the leader's in `leaders`
    name: Mapped[str] = mapped_column(String(80))  # host and port, for people
    version: Mapped[str] = mapped_column(String(32))
    key_sha256: Mapped[str] = mapped_column(String(64))  # of the public key for attempts
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime]


class Leader(Base):
    """A lease by name: the scheduler's leader among the server replicas."""

    __tablename__ = "leaders"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[datetime]
    served_since: Mapped[datetime | None]  # since then some replica has led, with no gap longer than a lease
