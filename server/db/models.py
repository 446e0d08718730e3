"""The tables. Alembic alone creates them; a test checks that the migrations and these classes agree."""

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    DateTime,
    Dialect,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    false,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

MAX_INTEGER = 2**31 - 1  # of an Integer column
MAX_BIG_INTEGER = 2**63 - 1  # of a BigInteger column


class UtcDateTime(TypeDecorator[datetime]):
    """A point in time. SQLite drops time zones: values are stored as UTC and come back aware."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is not None and value.tzinfo is None:
            raise ValueError("a datetime needs a time zone")
        return value.astimezone(UTC) if value is not None else None

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Constraint names are fixed, so that migrations can refer to them on every database."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class OwnedByProject:
    """A row that belongs to a project. A ScopedSession sees those of its caller's projects alone."""

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True)


class Project(Base):
    """What a team owns together. The id is its name."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(63), primary_key=True)
    title: Mapped[str] = mapped_column(String(120))
    storage_limit: Mapped[int | None] = mapped_column(BigInteger)  # bytes; null: none
    gpu_quota: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # guaranteed GPUs
    gpu_limit: Mapped[int | None]  # the most, with what is borrowed; null: all that is idle
    cpu_quota: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # slots of CPU jobs
    cpu_limit: Mapped[int | None]
    share_weight: Mapped[float] = mapped_column(Float, default=1.0, server_default="1")  # among borrowers
    quota_version: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # counts its changes
    retention: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # contracts.storage.Retention
    created_at: Mapped[datetime]
    deleted_at: Mapped[datetime | None]  # nobody sees it from then on; its rows go in batches


class Person(Base):
    """Somebody who may use the service, or a service account. kind: person or service."""

    __tablename__ = "people"
    __table_args__ = (Index("uq_people_oidc", "oidc_issuer", "oidc_subject", unique=True),)

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    email: Mapped[str | None] = mapped_column(String(254), unique=True)  # in lower case
    kind: Mapped[str] = mapped_column(String(8))
    cluster_role: Mapped[str | None] = mapped_column(String(16))  # admin or auditor
    default_project: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))
    active: Mapped[bool] = mapped_column(Boolean)
    created_at: Mapped[datetime]
    password_hash: Mapped[str | None] = mapped_column(String(200))  # identity/passwords.py
    oidc_issuer: Mapped[str | None] = mapped_column(String(255))  # who vouches for the person, and as whom
    oidc_subject: Mapped[str | None] = mapped_column(String(255))
    oidc_until: Mapped[datetime | None]  # how long that word holds; null: nobody's word is needed


class Membership(Base):
    """A person's role in a project: viewer, member or maintainer."""

    __tablename__ = "memberships"

    person_id: Mapped[str] = mapped_column(ForeignKey("people.id"), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True, index=True)
    role: Mapped[str] = mapped_column(String(16))


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


class Attempt(Base):
    """One attempt at a job. Its rows count from `first_step` on, up to a later attempt's first step."""

    __tablename__ = "attempts"
    __table_args__ = (Index("uq_attempts_job_number", "job_id", "number", unique=True),)

    id: Mapped[str] = mapped_column(String(48), primary_key=True)  # {job_id}.{number}
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    number: Mapped[int]
    state: Mapped[str] = mapped_column(String(16), index=True)  # starting, running, ended, lapsed
    first_step: Mapped[int] = mapped_column(Integer, default=0)
    summarised: Mapped[int] = mapped_column(Integer, default=0, server_default="0")  # steps below: in blocks
    order: Mapped[str] = mapped_column(String(24), default="continue")
    made_way_for: Mapped[str | None] = mapped_column(String(32))  # the job that the planner stopped it for
    order_cause: Mapped[str | None] = mapped_column(String(16))  # contracts.attempts.OrderCause
    order_reason: Mapped[str | None] = mapped_column(String(300))  # who or what ordered it, for people
    ordered_at: Mapped[datetime | None]
    lease_expires_at: Mapped[datetime | None]
    outcome: Mapped[str | None] = mapped_column(String(16))
    reason: Mapped[str | None] = mapped_column(String(300))  # why it ended, unless `error` says it
    error: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_at: Mapped[datetime]
    claimed_at: Mapped[datetime | None]
    ended_at: Mapped[datetime | None]

    allocations: Mapped[list["Allocation"]] = relationship(order_by="Allocation.id")


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
    seen_at: Mapped[datetime]
    rival: Mapped[dict[str, Any] | None] = mapped_column(JSON(none_as_null=True))  # the last one refused
    closed: Mapped[str | None] = mapped_column(String(8))  # cordoned or draining: it takes nothing new
    closed_reason: Mapped[str | None] = mapped_column(String(200))  # for people
    drain_at: Mapped[datetime | None]  # from then on it drains
    gpus_since: Mapped[datetime | None]  # when it first reported the newest of its GPUs


class NodeSample(Base):
    """What a node used in ten seconds, for an hour; cluster/samples.py has its form."""

    __tablename__ = "node_samples"
    __table_args__ = (Index("ix_node_samples_at", "at"), {"sqlite_with_rowid": False})

    node_id: Mapped[str] = mapped_column(String(64), primary_key=True)  # not a key: outlives the node
    at: Mapped[datetime] = mapped_column(primary_key=True)
    use: Mapped[dict[str, Any]]


class PriorityClass(Base):
    """A priority that a spec may name. Higher values go first; `role`: who may use it, in a project."""

    __tablename__ = "priority_classes"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int]
    role: Mapped[str] = mapped_column(String(16))  # member, maintainer or admin


class Outbox(Base):
    """An outgoing Celery message, written in the transaction that causes it; re-sent until `done_at`."""

    __tablename__ = "outbox"
    __table_args__ = (Index("ix_outbox_owed", "done_at", "next_send_at"),)

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    task: Mapped[str] = mapped_column(String(64))
    queue: Mapped[str | None] = mapped_column(String(80))  # null: any live node
    subject: Mapped[str] = mapped_column(String(48), index=True)  # id of the task's job or attempt
    sends: Mapped[int] = mapped_column(Integer, default=0)
    next_send_at: Mapped[datetime]
    created_at: Mapped[datetime]
    done_at: Mapped[datetime | None]


class Metric(Base):
    """One number; `seq` is the ingest that wrote it. Ordered by step, so a report is stored in one place."""

    __tablename__ = "metrics"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    update: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    value: Mapped[float | None] = mapped_column(Float)  # null: not finite
    seq: Mapped[int] = mapped_column(BigInteger)


class MetricReport(Base):
    """Which steps an ingest wrote: finds the metrics of a `seq`."""

    __tablename__ = "metric_reports"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    first_step: Mapped[int]
    last_step: Mapped[int]


class MetricBlock(Base):
    """An attempt's numbers of one series and update over the steps [start, start + width), summarised.

    Derived from `metrics`; server/metrics/blocks.py keeps it so, up to the attempt's `summarised`.
    """

    __tablename__ = "metric_blocks"
    __table_args__ = ({"sqlite_with_rowid": False},)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    width: Mapped[int] = mapped_column(Integer, primary_key=True)
    start: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    update: Mapped[int] = mapped_column(Integer, primary_key=True)
    name: Mapped[str] = mapped_column(String(80), primary_key=True)
    last_step: Mapped[int]
    count: Mapped[int]
    finite: Mapped[int]  # how many are not null
    total: Mapped[float | None] = mapped_column(Float)  # their sum, times blocks.SCALE
    low: Mapped[float | None] = mapped_column(Float)
    high: Mapped[float | None] = mapped_column(Float)


class JobEvent(Base):
    """Events in the stream besides metrics: state, rewind, trajectories, checkpoint."""

    __tablename__ = "job_events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    data: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]


class TrajectoryStep(Base):
    """One attempt's trajectories of a step: their scalars, and where their texts and tokens are."""

    __tablename__ = "trajectory_steps"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    count: Mapped[int]
    texts: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    tokens: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    token_rows: Mapped[int] = mapped_column(Integer, server_default="0")  # trajectories 0 to token_rows - 1
    rows: Mapped[bytes] = mapped_column(LargeBinary, deferred=True)  # TrajectoryRows, by packing.py


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


class Checkpoint(Base):
    """A committed checkpoint: this row makes its files count."""

    __tablename__ = "checkpoints"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    step: Mapped[int] = mapped_column(Integer, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    manifest: Mapped[dict[str, Any]]
    size: Mapped[int] = mapped_column(BigInteger)
    pinned: Mapped[bool] = mapped_column(
        Boolean, default=False, server_default=false()
    )  # kept whatever comes
    created_at: Mapped[datetime]


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


class LogChunk(Base):
    """A piece of an attempt's log: bytes [offset, offset + size) of it, in the artefact store."""

    __tablename__ = "log_chunks"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True)
    offset: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    size: Mapped[int]
    artefact: Mapped[dict[str, Any]]


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


class ApiKey(Base):
    """A bearer key, stored hashed: a person's, or a node's token.

    A person's key allows at most what `role` does, in `project_id` alone if it names one.
    """

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    role: Mapped[str] = mapped_column(String(16))  # node, or the most that it allows: identity/policy.py
    person_id: Mapped[str | None] = mapped_column(ForeignKey("people.id"), index=True)  # null: a node's
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))  # null: all of the person's
    node: Mapped[str | None] = mapped_column(String(64))  # the only one whose token it is
    key_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    prefix: Mapped[str | None] = mapped_column(
        String(16)
    )  # to tell keys apart; null: made by an older version
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime | None]
    used_at: Mapped[datetime | None]  # to within sessions.TOUCH
    revoked_at: Mapped[datetime | None]
    made_by: Mapped[str | None] = mapped_column(String(32), index=True)  # the key that made it


class BrowserSession(Base):
    """A signed-in browser; the cookie's value is stored hashed. A code is a session not yet opened.

    kind: session, or how one can be opened: code (by its own person) or invite (by an administrator's link).
    """

    __tablename__ = "browser_sessions"

    id_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(8))
    method: Mapped[str | None] = mapped_column(String(16))  # of a session: how it was opened
    person_id: Mapped[str] = mapped_column(ForeignKey("people.id"), index=True)
    key_id: Mapped[str | None] = mapped_column(ForeignKey("api_keys.id"))  # that opened it, if one did
    agent: Mapped[str | None] = mapped_column(String(200))
    address: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime]
    used_at: Mapped[datetime]  # to within sessions.TOUCH
    expires_at: Mapped[datetime]  # unless it is used
    ends_at: Mapped[datetime]  # in any case


class DeviceSignIn(Base):
    """A command line that waits for a person's word. state: pending, approved or denied."""

    __tablename__ = "device_sign_ins"

    secret_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    user_code: Mapped[str] = mapped_column(String(16), unique=True)
    client: Mapped[str] = mapped_column(String(120))
    address: Mapped[str | None] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8))
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    person_id: Mapped[str | None] = mapped_column(ForeignKey("people.id"))  # who decided
    project_id: Mapped[str | None] = mapped_column(ForeignKey("projects.id"))  # of the key, as what follows
    role: Mapped[str | None] = mapped_column(String(16))
    key_ends_at: Mapped[datetime | None]
    made_by: Mapped[str | None] = mapped_column(String(32))  # the key behind the session that decided


class SealedValue:
    """A secret's value, encrypted (server/vault/sealing.py), and who set it."""

    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(32))  # of the key in the file that wrapped `wrapped_key`
    wrapped_key: Mapped[bytes] = mapped_column(LargeBinary)
    blob: Mapped[bytes] = mapped_column(LargeBinary)
    set_by: Mapped[str] = mapped_column(ForeignKey("people.id"))
    set_at: Mapped[datetime]
    used_at: Mapped[datetime | None]  # when a job last got it


class ProjectSecret(OwnedByProject, SealedValue, Base):
    """A secret that all jobs of the project may name."""

    __tablename__ = "project_secrets"

    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), primary_key=True)


class PersonSecret(SealedValue, Base):
    """A secret that the person's own jobs may name, as me/NAME."""

    __tablename__ = "person_secrets"

    person_id: Mapped[str] = mapped_column(ForeignKey("people.id"), primary_key=True)


class Leader(Base):
    """A lease by name: the scheduler's leader among the server replicas."""

    __tablename__ = "leaders"

    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    expires_at: Mapped[datetime]


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
    """The one row that whoever appends to the audit log locks: where its chain ends."""

    __tablename__ = "audit_head"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger)
    hash: Mapped[str] = mapped_column(String(64))
