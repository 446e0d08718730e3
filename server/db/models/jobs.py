"""Jobs, their attempts and what those hold, and what happened to them."""

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Float, ForeignKey, Index, Integer, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from server.db.models.base import Base, OwnedByProject


class PriorityClass(Base):
    """A priority that a spec may name. Higher values go first; `role`: who may use it, in a project."""

    __tablename__ = "priority_classes"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int]
    role: Mapped[str] = mapped_column(String(16))  # member, maintainer or admin


class Job(OwnedByProject, Base):
    """A job. `attempt` is the current attempt's number: the fence that every write is checked against."""

    __tablename__ = "jobs"
    __table_args__ = (
        Index("uq_jobs_idempotency", "created_by", "project_id", "idempotency_key", unique=True),
        Index(
            "ix_jobs_deleted_at",
            "deleted_at",
            postgresql_where=text("deleted_at IS NOT NULL"),
            sqlite_where=text("deleted_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    state: Mapped[str] = mapped_column(String(16), index=True)
    spec: Mapped[dict[str, Any]]
    spec_text: Mapped[str | None] = mapped_column(Text)  # as submitted, if it came as text
    demand: Mapped[str] = mapped_column(Text, server_default="")  # of the cluster; jobs/demand.py reads it
    algorithm: Mapped[str] = mapped_column(String(32))
    total_steps: Mapped[int] = mapped_column(Integer)
    step: Mapped[int] = mapped_column(Integer, default=0)
    last_reward: Mapped[float | None] = mapped_column(Float)
    last_p: Mapped[float | None] = mapped_column(Float)  # mean p of the last pass
    last_p_defined: Mapped[int | None]  # trajectories that have one
    last_p_undefined: Mapped[int | None]  # and that have none
    held_out_before: Mapped[float | None] = mapped_column(Float)  # eval/reward before training
    held_out: Mapped[float | None] = mapped_column(Float)  # the newest
    phase: Mapped[str | None] = mapped_column(String(200))
    seq: Mapped[int] = mapped_column(BigInteger, default=0)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    restarts: Mapped[int] = mapped_column(Integer, default=0)  # since the last new checkpoint
    not_before: Mapped[datetime | None]  # restart no earlier than this
    cancel_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    pause_requested: Mapped[bool] = mapped_column(Boolean, default=False, server_default=false())
    priority: Mapped[str] = mapped_column(String(32), default="normal", server_default="normal")  # a class
    queued_at: Mapped[datetime | None]  # since when it has waited for its place
    preemptions: Mapped[int] = mapped_column(Integer, default=0, server_default="0")
    ended_by: Mapped[str | None] = mapped_column(String(300))  # the rule that ended it early, for people
    limits: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # jobs/limits.py
    longest_sequence: Mapped[int | None]  # tokens of prompt and completion, as a node measured them
    forked_from: Mapped[str | None] = mapped_column(String(32), index=True)  # not a key: outlives that job
    forked_step: Mapped[int | None]  # None: from its final model
    origin: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # contracts.forks.Origin
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    idempotency_key: Mapped[str | None] = mapped_column(String(200))
    spec_sha256: Mapped[str] = mapped_column(String(64))
    created_by: Mapped[str] = mapped_column(ForeignKey("people.id"))
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]  # nobody sees it from then on; its rows go in batches

    attempts: Mapped[list["Attempt"]] = relationship(order_by="Attempt.number")


class ForkedFiles(Base):
    """Files of another job that a fork began with: they stay in the store as long as this row."""

    __tablename__ = "forked_files"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    owner: Mapped[str] = mapped_column(String(32), primary_key=True, index=True)  # not a key, as above
    files: Mapped[list[Any]]  # references


class Attempt(Base):
    """One attempt at a job. Its rows count from `first_step` on, up to a later attempt's first step."""

    __tablename__ = "attempts"
    __table_args__ = (Index("uq_attempts_job_number", "job_id", "number", unique=True),)

    id: Mapped[str] = mapped_column(String(48), primary_key=True)  # {job_id}.{number}
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    nodes: Mapped[int] = mapped_column(Integer, default=1, server_default="1")  # that train together
    state: Mapped[str] = mapped_column(String(16), index=True)  # starting, running, ended, lapsed
    first_step: Mapped[int] = mapped_column(Integer, default=0)
    summarised: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # steps below: in blocks
    order: Mapped[str] = mapped_column(String(24), default="continue")
    made_way_for: Mapped[str | None] = mapped_column(String(32), index=True)  # the job it was stopped for
    order_cause: Mapped[str | None] = mapped_column(String(16))  # contracts.attempts.OrderCause
    order_reason: Mapped[str | None] = mapped_column(String(300))  # who or what ordered it, for people
    ordered_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(300))  # why it ended, unless `error` says it
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime]
    claimed_at: Mapped[datetime | None]
    claim_id: Mapped[str | None] = mapped_column(String(64))  # by which its node knows its own claim again
    ran_s: Mapped[float | None] = mapped_column(Float)  # since its claim, by its node's own clock
    ended_at: Mapped[datetime | None]

    allocations: Mapped[list["Allocation"]] = relationship(order_by="Allocation.id")
    members: Mapped[list["AttemptMember"]] = relationship(order_by="AttemptMember.node_rank")


class AttemptMember(Base):
    """One of the nodes of an attempt that runs on several: its own claim, lease, address and end.

    An attempt on one node has no such rows: its own row says it all.
    """

    __tablename__ = "attempt_members"

    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), primary_key=True)
    node_rank: Mapped[int] = mapped_column(Integer, primary_key=True)
    node_id: Mapped[str] = mapped_column(String(64))  # not a key: outlives the node
    claimed_at: Mapped[datetime | None]
    claim_id: Mapped[str | None] = mapped_column(String(64))
    lease_expires_at: Mapped[datetime | None]  # null: nothing more is expected of it
    report: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # a MemberReport
    ended_at: Mapped[datetime | None]  # its processes are gone
    outcome: Mapped[str | None] = mapped_column(String(16))
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))


class Allocation(Base):
    """What an attempt holds on a node, until `released_at`: set when its processes are known to be gone."""

    __tablename__ = "allocations"
    __table_args__ = (
        Index(
            "ix_allocations_held",
            "node_id",
            "engine_id",
            "attempt_id",
            postgresql_where=text("released_at IS NULL"),
            sqlite_where=text("released_at IS NULL"),
        ),
        Index(
            "ix_allocations_released_at",
            "released_at",
            postgresql_where=text("released_at IS NOT NULL"),
            sqlite_where=text("released_at IS NOT NULL"),
        ),
    )

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt_id: Mapped[str] = mapped_column(ForeignKey("attempts.id"), index=True)
    role: Mapped[str] = mapped_column(String(16))
    node_id: Mapped[str] = mapped_column(String(64))  # not a key: outlives the node
    gpu_uuids: Mapped[list[Any]]
    engine_id: Mapped[str | None] = mapped_column(String(32), index=True)  # not a key: outlives the engine
    released_at: Mapped[datetime | None]


class UsageRecord(Base):
    """What a job that was deleted held: GPUs and CPU slots from one time to another.

    It refers to no job and no project, since it outlives both; the project of one that was deleted is
    `NAME (deleted)`, which no new project can be called.
    """

    __tablename__ = "usage_records"

    id: Mapped[int] = mapped_column(BigInteger().with_variant(Integer, "sqlite"), primary_key=True)
    job_id: Mapped[str] = mapped_column(String(32))
    project: Mapped[str] = mapped_column(String(80), index=True)
    person_id: Mapped[str] = mapped_column(ForeignKey("people.id"))
    gpus: Mapped[int]
    cpu_slots: Mapped[int]
    started_at: Mapped[datetime]
    ended_at: Mapped[datetime] = mapped_column(index=True)


class JobEvent(Base):
    """Events in the stream besides metrics: state, rewind, trajectories, checkpoint."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class Checkpoint(Base):
    """A committed checkpoint: this row makes its files count."""

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    manifest: Mapped[dict[str, Any]]
    size: Mapped[int] = mapped_column(BigInteger)
    value: Mapped[float | None] = mapped_column(Float)  # of the metric in checkpoints.best
    pinned: Mapped[bool] = mapped_column(
        Boolean, default=False, server_default=false()
    )  # kept whatever comes
    created_at: Mapped[datetime]


class Replay(Base):
    """A recorded step, recomputed. `digest` is the objective's, so the same replay is computed once."""

    __tablename__ = "replays"
    __table_args__ = (
        Index("uq_replays_same", "job_id", "step", "attempt", "digest", unique=True),
        Index("ix_replays_state", "state"),
    )

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    step: Mapped[int]
    attempt: Mapped[int]
    algorithm: Mapped[dict[str, Any]]
    digest: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16))  # waiting, running, done, failed
    node: Mapped[str | None] = mapped_column(String(64))
    deadline_at: Mapped[datetime]  # for waiting, then for running
    summary: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    tokens: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_by: Mapped[str] = mapped_column(ForeignKey("people.id"))
    created_at: Mapped[datetime]
    finished_at: Mapped[datetime | None]
