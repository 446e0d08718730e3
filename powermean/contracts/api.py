"""Answers of the REST API to people and their programs."""

from datetime import datetime
from enum import StrEnum
from typing import Literal

from pydantic import AwareDatetime, Field

from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.attempts import (
    AllocationView,
    AttemptUse,
    GpuInfo,
    GpuUse,
    JobError,
    JobResult,
    NameRival,
    OrderCause,
)
from powermean.contracts.base import Contract, Name
from powermean.contracts.forks import Fork, ForkedFrom
from powermean.contracts.job import JobSpec
from powermean.contracts.priorities import DEFAULT_PRIORITY
from powermean.contracts.renaming import Deprecation


class JobState(StrEnum):
    """The life of a job. The last three are final; a paused one waits for somebody to resume it."""

    VALIDATING = "validating"
    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        return self in (JobState.FINISHED, JobState.FAILED, JobState.CANCELLED)


class FieldError(Contract):
    """One thing wrong with the input."""

    path: str = Field(description="Dotted path of the field, e.g. rollout.group_size.")
    message: str
    remedy: str | None = None


class ErrorBody(Contract):
    """Every error has this shape."""

    code: str
    message: str
    remedy: str | None = None
    fields: tuple[FieldError, ...] = ()


class ErrorResponse(Contract):
    """The body of every answer that is not a success."""

    error: ErrorBody


class Readiness(Contract):
    """The server answers requests; `degraded` if a part of the service fails, for all servers alike."""

    status: Literal["ready", "degraded"] = "ready"
    wrong: tuple[FieldError, ...] = Field(
        (), description="What fails; `path` names the part: redis, artefacts or scheduler."
    )


class JobSummary(Contract):
    """A job in a list."""

    id: str
    name: str
    project: str = "default"
    state: JobState
    priority: str = DEFAULT_PRIORITY
    algorithm: str
    model: str
    step: int = Field(description="Steps done.")
    total_steps: int
    last_reward: float | None = None
    last_p: float | None = Field(None, description="Mean p of the last pass, if the objective has one.")
    last_p_defined: int | None = Field(None, description="Trajectories of that pass with a p.")
    last_p_undefined: int | None = Field(None, description="Trajectories of that pass without one.")
    held_out_before: float | None = Field(None, description="Mean held-out reward before training.")
    held_out: float | None = Field(None, description="The newest mean held-out reward.")
    attempt: int = Field(description="Number of the current attempt; 0 before the first.")
    cancel_requested: bool = False
    pause_requested: bool = Field(
        False, description="It pauses when its step, or the check of its spec, is done."
    )
    phase: str | None = Field(None, description="What the job is doing or waiting for, for people.")
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: JobError | None = None
    ended_by: str | None = Field(None, description="The limit that ended it early, in words.")
    owner: str | None = Field(
        None, description="Name of the submitter, in a list of jobs and in the answer of `GET /v1/jobs/{id}`."
    )
    created_by: str | None = Field(None, description="The submitter's id.")


# Orders of the list of jobs; `-`: descending. Jobs with equal values come newest first, those without last.
JobSort = Literal[
    "created", "-created", "name", "-name", "state", "-state", "owner", "-owner", "reward", "-reward",
    "held_out", "-held_out",
]  # fmt: skip


class AttemptNode(Contract):
    """One of the nodes of an attempt that runs on several."""

    node_rank: int = Field(description="0: the first node, which samples, publishes and reports.")
    node_id: str
    claimed_at: datetime | None = Field(None, description="null: it has not claimed its part.")
    ended_at: datetime | None = Field(None, description="When it said that its processes are gone.")
    outcome: str | None = Field(None, description="How its part ended; lapsed: it was silent for too long.")
    error: JobError | None = Field(None, description="What it said went wrong there.")


class AttemptView(Contract):
    """One attempt at a job."""

    id: str
    number: int
    state: str
    first_step: int
    allocations: tuple[AllocationView, ...]
    nodes: tuple[AttemptNode, ...] = Field((), description="By node_rank; empty: it runs on one node.")
    created_at: datetime
    order_cause: OrderCause | None = Field(
        None, description="Why it was ordered to stop; null: nobody ordered it to."
    )
    order_reason: str | None = Field(None, description="The same in words, with names.")
    ordered_at: datetime | None = None
    ended_at: datetime | None = None
    freed_at: datetime | None = Field(None, description="When all that it held was free again.")
    outcome: str | None = Field(
        None, description="finished, failed, checkpointed, cancelled or lapsed; null: it has not ended."
    )
    reason: str | None = Field(None, description="Why it ended, for people; null: it has not ended.")
    error: JobError | None = Field(None, description="What went wrong, if something did.")


class Job(JobSummary):
    """A job with its spec, attempts and result."""

    spec: JobSpec | None = Field(
        description="null: this version can't read it, see spec_refused. GET /v1/jobs/{id}/text has it."
    )
    spec_refused: tuple[FieldError, ...] = Field(
        (),
        description="Fields of the stored spec that this version refuses; `spec` has their defaults instead. "
        "What conflicts only with such a default says so.",
    )
    forked_from: ForkedFrom | None = Field(None, description="Whose weights it began with.")
    forks: tuple[Fork, ...] = Field((), description="Jobs that began with its weights, the newest first.")
    result: JobResult | None = None
    attempts: tuple[AttemptView, ...] = ()
    preemptions: int = Field(0, description="How often it gave way to other work.")
    seconds_left: float | None = Field(None, description="Estimate from the durations of the last steps.")
    seq: int = Field(0, description="Number of the last event: follow /events from here.")


class SubmittedJob(Job):
    """Answer to POST /v1/jobs."""

    deprecations: tuple[Deprecation, ...] = Field((), description="Old names of fields in the request.")


class SpecSource(Contract):
    """A spec as text: YAML, or JSON, which is YAML. Comments and values equal to defaults are kept."""

    text: str = Field(max_length=100_000)


class JobPage(Contract):
    """Jobs in the requested order. `next` is the cursor of the next page."""

    items: tuple[JobSummary, ...]
    next: str | None = None


class CheckpointView(Contract):
    """A committed checkpoint."""

    step: int
    attempt: int
    size: int = Field(description="Bytes.")
    pinned: bool = Field(False, description="Kept by retention until somebody unpins it.")
    metric: str | None = Field(None, description="checkpoints.best of the spec.")
    value: float | None = Field(
        None,
        description="Its newest value since the checkpoint before; null: none, or not finite.",
    )
    best: bool = Field(False, description="It has the best value, and is kept for that.")
    created_at: datetime


class CheckpointList(Contract):
    """The checkpoints that are kept, oldest first."""

    items: tuple[CheckpointView, ...]


class FileList(Contract):
    """Files of the final model: GET /v1/jobs/{id}/files/{path} downloads one."""

    files: dict[str, ArtefactRef]


class LogText(Contract):
    """Part of an attempt's log. Ask again with offset=next_offset for more."""

    attempt: int
    node_rank: int = Field(0, description="Which of the attempt's nodes wrote it.")
    offset: int
    next_offset: int
    text: str


class Dataset(Contract):
    """An uploaded JSONL dataset."""

    id: str
    name: str
    rows: int
    fields: tuple[str, ...] = Field(description="Fields that every row has.")
    sha256: str
    size: int
    project: str
    created_by: str | None = Field(None, description="Id of its uploader.")
    created_at: datetime


class DatasetList(Contract):
    """Datasets, newest first. `next` is the cursor of the next page."""

    items: tuple[Dataset, ...]
    next: str | None = None


class NodeView(Contract):
    """A node of the cluster."""

    id: str
    hostname: str
    gpus: tuple[GpuInfo, ...]
    cpu_slots: int
    engines: tuple[str, ...]
    labels: dict[str, str] = Field({}, description="What specs may ask for.")
    full_disk: str | None = Field(
        None, description="Folder whose disk is full; it gets no attempts meanwhile."
    )
    version: str
    alive: bool
    seen_at: datetime
    closed: Literal["cordoned", "draining"] | None = Field(
        None, description="It takes no new work; draining: what runs there leaves at its next step."
    )
    closed_reason: str | None = Field(None, description="Who closed it and why, for people.")
    drain_at: datetime | None = Field(None, description="When it starts to drain, or started.")
    drained: bool = Field(False, description="It drains and nothing is left there: it may be switched off.")
    attempts: tuple[str, ...] = Field(description="Attempts of your projects that hold resources on it.")
    other_attempts: int = Field(0, description="How many of other projects hold resources on it.")
    use: tuple[AttemptUse, ...] = Field((), description="What attempts of your projects use of it.")
    missing_gpus: tuple[str, ...] = Field(
        (), description="GPUs that attempts hold there and that the node doesn't report any more."
    )
    blind: tuple[str, ...] = Field((), description="What of its GPUs' health can't be read there.")
    rival: NameRival | None = Field(
        None, description="Another worker that tried to use the node's name within a day."
    )


class NodeSample(Contract):
    """What a node used at a time: how busy its GPUs were, and your projects' attempts."""

    at: datetime
    gpus: tuple[GpuUse, ...]
    attempts: tuple[AttemptUse, ...]


class NodeSamples(Contract):
    """Samples of the last hour, oldest first; a gap is a time without reports."""

    every_s: int = Field(description="Seconds between two.")
    items: tuple[NodeSample, ...]


class NodeClosing(Contract):
    """Why a node takes nothing new (POST /v1/nodes/{id}/cordon)."""

    reason: Name | None = Field(None, description="For people: jobs that wait for the node say it.")


class NodeDrain(NodeClosing):
    """When and why a node is emptied (POST /v1/nodes/{id}/drain)."""

    at: AwareDatetime | None = Field(None, description="With its time zone; null: at once.")


class NodeList(Contract):
    """The cluster's nodes."""

    items: tuple[NodeView, ...]


class ServerView(Contract):
    """A server process of this service."""

    id: str
    name: str = Field(description="Its host and port.")
    version: str
    started_at: datetime
    seen_at: datetime = Field(description="Its last sign of life; there is one every five seconds.")
    alive: bool
    leads: bool = Field(description="Whether it schedules for all; the others serve.")


class ServerList(Contract):
    """The servers that share the database. One that stops in order leaves the list, one that dies stays."""

    items: tuple[ServerView, ...]


class LoginCode(Contract):
    """A code that signs a browser in once."""

    code: str
    url: str = Field(description="Open it in that browser.")
    expires_at: datetime


class Event(Contract):
    """One server-sent event of GET /v1/jobs/{id}/events; `seq` is its id.

    data by kind: metrics {attempt, rows}, state (a JobSummary), rewind {attempt, from_step},
    trajectories {step, count}, checkpoint {step, attempt}.
    """

    seq: int
    kind: Literal["metrics", "state", "rewind", "trajectories", "checkpoint"]
    data: dict[str, object]
