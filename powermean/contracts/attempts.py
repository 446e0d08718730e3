"""What a node and the server say to each other about one attempt at a job.

An attempt's number is its fencing token: the server refuses (409 `fenced`) every write of an attempt that
is not the job's current one or whose lease has lapsed into a newer attempt.
"""

from typing import Annotated, Literal

from pydantic import Field

from powermean.contracts.artefacts import ArtefactRef, Manifest
from powermean.contracts.base import Contract
from powermean.contracts.job import JobSpec
from powermean.contracts.metrics import MetricRow
from powermean.contracts.rollout import AdapterSlots
from powermean.contracts.trajectories import TrajectoryBatch


class JobError(Contract):
    """Why a job failed, for people: what, where, and what to do about it."""

    code: str = Field(
        description="Stable machine-readable name, e.g. out_of_memory, unknown_model, trainer_killed."
    )
    message: str
    path: str | None = Field(None, description="Field of the spec at fault, e.g. training.steps.")
    remedy: str | None = None


class EngineStart(Contract):
    """How the start of a rollout service ended: exactly one of `url` and `error`."""

    url: str | None = Field(None, description="Where it serves.")
    error: JobError | None = Field(None, description="Why it does not.")
    retryable: bool = Field(False, description="Whether another start may well succeed.")


class GpuInfo(Contract):
    """One GPU of a node."""

    uuid: str
    name: str
    memory_mb: int


class EngineReport(Contract):
    """What a node says of an engine service that it runs: this registers it with the server."""

    id: str
    generation: int = Field(ge=1, description="Of the order that it runs by.")
    state: Literal["starting", "ready", "failed", "stopping"]
    gpu_uuids: tuple[str, ...] = Field((), description="Held as long as the node reports the engine.")
    url: str | None = Field(None, description="Where it serves; the same after a restart.")
    max_model_len: int | None = Field(None, description="Most tokens of prompt and completion together.")
    adapters: AdapterSlots | None = Field(None, description="Capacity, and how much of it is taken.")
    requests: int | None = Field(None, ge=0, description="Requests that it works on.")
    restarts: int = Field(0, ge=0, description="Times that its process was started again.")
    error: JobError | None = Field(None, description="Why it failed, or why it was started again.")


class NodeReport(Contract):
    """A node's inventory and what still runs there (PUT /v1/nodes/{id}, with the node's token)."""

    hostname: str
    gpus: tuple[GpuInfo, ...] = ()
    cpu_slots: int = Field(1, ge=0, le=1024, description="CPU jobs that the node runs at once.")
    engines: tuple[str, ...] = Field((), description="Rollout engines installed there.")
    running: tuple[str, ...] = Field(
        (), description="Attempt ids whose processes are still alive on the node."
    )
    services: tuple[EngineReport, ...] = Field((), description="Engine services that run there.")
    version: str


class AllocationView(Contract):
    """Part of the gang of an attempt: a role on a node with its GPUs (none: a CPU slot)."""

    role: Literal["trainer", "rollout"]
    node_id: str
    gpu_uuids: tuple[str, ...] = ()
    engine_id: str | None = Field(
        None, description="A slot of this engine service, which has the GPUs; null: an engine of its own."
    )


class ClaimedEngine(Contract):
    """The engine service that an attempt samples from."""

    id: str
    url: str


class CheckpointCommit(Contract):
    """A complete checkpoint after `step` finished steps; committing it moves the job's resume point."""

    step: int = Field(ge=0)
    manifest: Manifest


class Claim(Contract):
    """All that a node needs to run an attempt (answer to POST /v1/attempts/{id}/claim)."""

    attempt_id: str
    job_id: str
    number: int = Field(ge=1)
    spec: JobSpec
    allocations: tuple[AllocationView, ...]
    token: str = Field(description="Attempt token; renewed by every heartbeat.")
    lease_s: float
    beat_s: float
    resume: CheckpointCommit | None = None
    dataset: ArtefactRef | None = None
    engine: ClaimedEngine | None = Field(
        None, description="Engine service to sample from; null: the attempt starts an engine of its own."
    )


class ValidationTask(Contract):
    """What a node checks before a job is queued (answer to GET /v1/jobs/{id}/validation)."""

    job_id: str
    spec: JobSpec
    dataset: ArtefactRef | None = None


class ValidationResult(Contract):
    """Outcome of the node's checks (POST /v1/jobs/{id}/validation): no errors means queue it."""

    errors: tuple[JobError, ...] = ()
    tokens: int | None = Field(
        None, ge=1, description="Prompt and completion together, at most, where that is known."
    )


Order = Literal["continue", "checkpoint_and_exit", "cancel"]


class Heartbeat(Contract):
    """The supervisor is alive."""

    phase: str = Field(max_length=80, description="What the trainer is doing, for people.")


class HeartbeatReply(Contract):
    """Orders, and a fresh token."""

    order: Order
    token: str


class MetricsReport(Contract):
    """Metric rows; posting the same rows again changes nothing."""

    rows: Annotated[tuple[MetricRow, ...], Field(max_length=20_000)]


class LogChunk(Contract):
    """Text of the attempt's log from byte `offset` on; the same chunk twice is stored once."""

    offset: int = Field(ge=0)
    text: str = Field(max_length=1_000_000)


class JobResult(Contract):
    """What a finished job leaves."""

    steps: int = Field(ge=1, description="Steps trained; a job that trained none has failed.")
    reward_before: float | None = Field(None, description="Held-out mean reward before training.")
    reward_after: float | None = Field(None, description="Held-out mean reward after training.")
    tokens: int = Field(ge=0, description="Completion tokens sampled in training.")
    model: Manifest = Field(description="The final model: a Hugging Face folder.")


class Finish(Contract):
    """The attempt's processes are gone. `checkpointed`: it stopped on order and can go on elsewhere."""

    outcome: Literal["finished", "failed", "checkpointed", "cancelled"]
    error: JobError | None = None
    retryable: bool = Field(
        False, description="Failed by circumstance (killed, node trouble): worth a new attempt."
    )
    result: JobResult | None = None


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
    """The trainer's own word on how it ended: the last record of the spool."""

    kind: Literal["finish"] = "finish"
    body: Finish


# What the trainer leaves in its spool, one file each, named by a growing number; the supervisor posts `body`
# to /v1/attempts/{id}/{kind} in order and removes the file once it is acknowledged.
SpoolRecord = Annotated[
    MetricsRecord | TrajectoriesRecord | CheckpointRecord | FinishRecord, Field(discriminator="kind")
]
