"""Messages between a node and the server about one attempt at a job.

An attempt's number is its fencing token: the server refuses (409 `fenced`) every write from an attempt that
is not the job's current one.
"""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from powermean.contracts.artefacts import ArtefactRef, Manifest
from powermean.contracts.base import Contract, Labels, conflict
from powermean.contracts.forks import Origin
from powermean.contracts.job import JobSpec
from powermean.contracts.metrics import MetricRow
from powermean.contracts.rollout import AdapterSlots
from powermean.contracts.secrets import SecretValues
from powermean.contracts.trajectories import TrajectoryBatch

MOST_MEMORY_MB = 4 * 2**20  # of one GPU: 4 TiB


class JobError(Contract):
    """Why a job failed, for people: what, where, and what to do about it."""

    code: str = Field(
        description="Stable machine-readable name, e.g. out_of_memory, unknown_model, trainer_killed."
    )
    message: str
    path: str | None = Field(None, description="Field of the spec at fault, e.g. training.steps.")
    remedy: str | None = None


class EngineStart(Contract):
    """How the start of a rollout service went: exactly one of `url` and `error`."""

    url: str | None = Field(None, description="Where it serves.")
    error: JobError | None = Field(None, description="Why it does not.")
    retryable: bool = Field(False, description="Whether another start may succeed.")


class GpuUse(Contract):
    """How busy a GPU is; null: not known."""

    uuid: str = Field(min_length=1, max_length=64)
    utilisation: float | None = Field(None, ge=0, le=100, description="Percent of the time it was busy.")
    memory_used_mb: int | None = Field(None, ge=0, le=MOST_MEMORY_MB)
    temperature_c: int | None = Field(None, ge=-100, le=1000)
    power_w: float | None = Field(None, ge=0, le=100_000)


class GpuInfo(GpuUse):
    """One GPU of a node: what it is, how it is, and how busy it is."""

    name: str = Field(max_length=200)
    memory_mb: int = Field(ge=0, le=MOST_MEMORY_MB, description="In MiB; 0: not known.")
    unhealthy: str | None = Field(
        None, max_length=200, description="Why it is given no work, for people; null: it is well."
    )

    @model_validator(mode="after")
    def _used_of_what_there_is(self) -> Self:
        used = self.memory_used_mb
        if used is not None and 0 < self.memory_mb < used:
            raise conflict(("memory_used_mb",), f"is above memory_mb ({self.memory_mb})", used)
        return self


class AttemptUse(Contract):
    """What the processes of an attempt use of a node's CPUs and memory."""

    attempt_id: str = Field(max_length=64)
    cpu: float = Field(ge=0, description="Busy cores.")
    memory_mb: int = Field(ge=0, description="In MiB; memory that processes share counts in each of them.")


class EngineReport(Contract):
    """A node's report on an engine service that it runs, which registers it with the server."""

    id: str
    generation: int = Field(ge=1, description="Generation of the order that it runs by.")
    state: Literal["starting", "ready", "failed", "stopping"]
    gpu_uuids: tuple[str, ...] = Field((), description="Held while the node reports the engine.")
    url: str | None = Field(None, description="Its address; unchanged by a restart.")
    max_model_len: int | None = Field(None, description="Most tokens of prompt and completion together.")
    adapters: AdapterSlots | None = Field(None, description="Capacity, and how much of it is taken.")
    requests: int | None = Field(None, ge=0, description="Requests in progress.")
    restarts: int = Field(0, ge=0, description="How often its process was restarted.")
    error: JobError | None = Field(None, description="Why it failed, or why it was restarted.")


class NodeReport(Contract):
    """A node's inventory and what still runs there (PUT /v1/nodes/{id}, with the node's token)."""

    hostname: str
    instance: str = Field(
        "",
        max_length=64,
        description="Which worker this is, by its data folder; another one can't use the node's name.",
    )
    gpus: tuple[GpuInfo, ...] = Field((), max_length=256)
    cpu_slots: int = Field(1, ge=0, le=1024, description="CPU jobs that the node runs at once.")
    engines: tuple[str, ...] = Field((), description="Rollout engines installed there.")
    labels: Labels = Field({}, description="What specs may ask for by `resources.node_labels`.")
    running: tuple[str, ...] = Field((), description="Attempts with live processes on the node.")
    checking: tuple[str, ...] = Field((), description="Jobs whose specs the node is checking.")
    services: tuple[EngineReport, ...] = Field((), description="Engine services that run there.")
    full_disk: str | None = Field(
        None, description="Folder of the node whose disk is full: it is given no attempts meanwhile."
    )
    leaving: bool = Field(
        False, description="Its allocation is being ended: what runs there saves a checkpoint and leaves."
    )
    use: tuple[AttemptUse, ...] = Field((), max_length=4096, description="What its attempts use now.")
    blind: tuple[str, ...] = Field(
        (), max_length=8, description="What of its GPUs' health can't be read there, for people."
    )
    number: int | None = Field(
        None,
        ge=0,
        lt=2**63,
        description="Grows with every report, also over restarts of the worker: an older report that comes "
        "late is ignored. null: they are taken as they come.",
    )
    version: str
    revision: int = Field(1, ge=1, description="Of the contracts, that its worker knows.")

    @model_validator(mode="after")
    def _each_gpu_once(self) -> Self:
        seen: dict[str, int] = {}
        for place, gpu in enumerate(self.gpus):
            if (first := seen.setdefault(gpu.uuid, place)) != place:
                raise conflict(("gpus", place, "uuid"), f"is the same as gpus.{first}.uuid", gpu.uuid)
        return self


class NameRival(Contract):
    """Another worker that tried to use a node's name, and was refused."""

    hostname: str
    at: datetime


class AllocationView(Contract):
    """Part of an attempt's gang: a role on a node with its GPUs (none means a CPU slot)."""

    role: Literal["trainer", "rollout"]
    node_id: str
    gpu_uuids: tuple[str, ...] = ()
    engine_id: str | None = Field(
        None, description="A slot of this engine service, which has the GPUs; null: the attempt's own engine."
    )


class ClaimedEngine(Contract):
    """The engine service that an attempt samples from."""

    id: str
    url: str


class CheckpointCommit(Contract):
    """A complete checkpoint after `step` finished steps; the job resumes from the last one committed."""

    step: int = Field(ge=0)
    manifest: Manifest


class MemberReport(Contract):
    """Where the other nodes of a job reach this one, and whether it is ready for them."""

    address: str = Field(min_length=1, max_length=253, description="Host name or address.")
    store_port: int | None = Field(
        None, ge=1, le=65535, description="Of the store where the ranks meet; the first node has it."
    )
    engine_urls: tuple[str, ...] = Field((), max_length=64, description="Engines that serve there.")
    ready: bool = Field(False, description="It starts its ranks as soon as all nodes are ready.")


class Member(Contract):
    """One of the nodes that an attempt runs on."""

    node_rank: int = Field(ge=0, description="0: the first node, which samples, publishes and reports.")
    node_id: str
    report: MemberReport | None = None


class ClaimRequest(Contract):
    """Which of the attempt's nodes claims its part (the body of POST /v1/attempts/{id}/claim)."""

    node_id: str | None = Field(None, description="null: the attempt's first node.")


class Claim(Contract):
    """All that a node needs to run an attempt, but its secrets: they are never written to its disk."""

    attempt_id: str
    job_id: str
    number: int = Field(ge=1)
    node_rank: int = Field(0, ge=0, description="This node's place among the attempt's nodes.")
    spec: JobSpec
    allocations: tuple[AllocationView, ...]
    token: str = Field(description="Attempt token; renewed by every heartbeat.")
    lease_s: float
    beat_s: float
    resume: CheckpointCommit | None = None
    dataset: ArtefactRef | None = None
    origin: Origin | None = Field(None, description="What `model.from` stands for.")
    engine: ClaimedEngine | None = Field(
        None, description="Engine service to sample from; null: the attempt starts its own engine."
    )


class ClaimWithSecrets(Contract):
    """The answer to POST /v1/attempts/{id}/claim."""

    claim: Claim
    secrets: SecretValues = Field(
        default_factory=dict, repr=False, description="Values for the environment, as `spec.secrets` says."
    )


class ValidationTask(Contract):
    """What a node checks before a job is queued."""

    job_id: str
    spec: JobSpec
    dataset: ArtefactRef | None = None
    origin: Origin | None = Field(None, description="What `model.from` stands for.")


class ValidationWithSecrets(Contract):
    """The answer to GET /v1/jobs/{id}/validation."""

    task: ValidationTask
    secrets: SecretValues = Field(
        default_factory=dict, repr=False, description="Only what a model is fetched with."
    )


class ValidationResult(Contract):
    """Outcome of the node's checks (POST /v1/jobs/{id}/validation); without errors the job is queued."""

    errors: tuple[JobError, ...] = ()
    store_error: str | None = Field(
        None,
        max_length=1000,
        description="Why the node can't use the artefact store. Without errors: it is checked again.",
    )
    tokens: int | None = Field(None, ge=1, description="Longest prompt with its completion, if known.")


Order = Literal["continue", "checkpoint_and_exit", "finish", "cancel"]
# Why an order to stop was given.
OrderCause = Literal["paused", "preempted", "drained", "cancelled", "limit", "stalled"]


class Heartbeat(Contract):
    """The supervisor is alive."""

    phase: str = Field(max_length=80, description="What the trainer is doing, for people.")
    node_rank: int = Field(0, ge=0, description="Which of the attempt's nodes is alive.")
    member: MemberReport | None = Field(None, description="What the other nodes need to know of this one.")
    ran_s: float | None = Field(
        None,
        ge=0,
        le=1e9,  # far longer than any attempt, and sums of it still are intervals
        description="How long the attempt has run on this node, by a clock that never jumps.",
    )


class HeartbeatReply(Contract):
    """An order and a fresh token."""

    order: Order
    token: str
    members: tuple[Member, ...] = Field(
        (), description="All nodes of the attempt, by node_rank; empty where there is one."
    )


class MetricsReport(Contract):
    """Metric rows; posting the same rows again changes nothing."""

    rows: Annotated[tuple[MetricRow, ...], Field(max_length=20_000)]


class LogChunk(Contract):
    """Text of the attempt's log from byte `offset` on; a repeated chunk is stored once."""

    offset: int = Field(ge=0)
    text: str = Field(max_length=1_000_000)
    node_rank: int = Field(0, ge=0, description="On which of the attempt's nodes: each has a log of its own.")


class JobResult(Contract):
    """The result of a finished job."""

    steps: int = Field(ge=1, description="Steps trained; a job that trained none has failed.")
    reward_before: float | None = Field(None, description="Held-out mean reward before training.")
    reward_after: float | None = Field(None, description="Held-out mean reward after training.")
    tokens: int = Field(ge=0, description="Completion tokens sampled in training.")
    model: Manifest = Field(description="The final model: a Hugging Face folder.")


class Finish(Contract):
    """The attempt's processes are gone. `checkpointed`: it stopped as ordered and can resume elsewhere."""

    outcome: Literal["finished", "failed", "checkpointed", "cancelled"]
    node_rank: int = Field(0, ge=0, description="On which of the attempt's nodes the processes are gone.")
    reason: str | None = Field(
        None,
        max_length=300,
        description="Why it was stopped, for people; null: nobody on the node stopped it.",
    )
    error: JobError | None = None
    retryable: bool = Field(
        False,
        description="Failed because of circumstances (killed, node trouble): a new attempt may succeed.",
    )
    result: JobResult | None = None
    ended_by: str | None = Field(
        None, max_length=300, description="The limit that ended its training early, in words."
    )


class MetricsRecord(Contract):
    """Spooled metrics."""

    kind: Literal["metrics"] = "metrics"
    body: MetricsReport


class TrajectoriesRecord(Contract):
    """Spooled trajectories."""

    kind: Literal["trajectories"] = "trajectories"
    body: TrajectoryBatch


class CheckpointRecord(Contract):
    """A spooled checkpoint commit."""

    kind: Literal["checkpoints"] = "checkpoints"
    body: CheckpointCommit


class FinishRecord(Contract):
    """How the trainer says it ended: the last record of the spool."""

    kind: Literal["finish"] = "finish"
    body: Finish


# The trainer's spool has one file per record, named by an increasing number. The supervisor posts each `body`
# to /v1/attempts/{id}/{kind} in order and removes the file once the server has acknowledged it.
SpoolRecord = Annotated[
    MetricsRecord | TrajectoriesRecord | CheckpointRecord | FinishRecord, Field(discriminator="kind")
]
