"""How projects share the cluster: their quotas, and the queue of jobs that wait for a place in it."""

from datetime import datetime
from typing import Annotated, Literal, Self

from pydantic import Field, StrictFloat, StrictInt, model_validator

from powermean.contracts.base import Contract, conflict

Count = Annotated[StrictInt, Field(ge=0, le=1_000_000)]
Weight = Annotated[StrictFloat, Field(ge=0.001, le=1000)]


class QuotaChange(Contract):
    """A project's quotas, all of them: what is guaranteed, and the most with what is borrowed."""

    gpu_quota: Count = Field(description="GPUs that the project is guaranteed.")
    gpu_limit: Count | None = Field(description="The most GPUs, with borrowed ones; null: all that is idle.")
    cpu_quota: Count = Field(description="CPU slots that the project is guaranteed.")
    cpu_limit: Count | None = Field(description="The most CPU slots; null: all that is idle.")
    weight: Weight = Field(description="Its part of what is idle, against the weights of other borrowers.")
    version: StrictInt = Field(
        ge=0, le=2**31 - 2, description="Of the quota that was read before: a changed one is not overwritten."
    )

    @model_validator(mode="after")
    def _within_its_limit(self) -> Self:
        for name, quota, limit in (
            ("gpu", self.gpu_quota, self.gpu_limit),
            ("cpu", self.cpu_quota, self.cpu_limit),
        ):
            if limit is not None and quota > limit:
                raise conflict((f"{name}_quota",), f"is above {name}_limit, which is {limit}", quota)
        return self


class Share(Contract):
    """A project's part of one kind of resource."""

    quota: int = Field(description="Guaranteed.")
    limit: int | None = Field(description="The most, with what is borrowed; null: all that is idle.")
    used: int = Field(description="Held by its jobs now.")

    @property
    def borrowed(self) -> int:
        """How much of what is used is beyond the quota."""
        return max(0, self.used - self.quota)


class ProjectQuota(Contract):
    """What a project is guaranteed, may borrow and uses."""

    project: str
    title: str
    gpus: Share
    cpu_slots: Share
    weight: float
    version: int = Field(description="Counts the changes: send it with the next one.")


class ChangedQuota(ProjectQuota):
    """The answer to a change."""

    warnings: tuple[str, ...] = Field((), description="What administrators should know, for people.")


class ClusterShare(Contract):
    """One kind of resource in the whole cluster."""

    total: int = Field(description="On the nodes that are connected.")
    used: int = Field(description="Held by jobs and shared engines.")
    quotas: int = Field(description="The sum of all projects' quotas.")


class ClusterTotals(Contract):
    """What the connected nodes have, and what of it is promised and used."""

    gpus: ClusterShare
    cpu_slots: ClusterShare


class QuotaList(Contract):
    """The quotas of the projects that the caller sees, by name."""

    items: tuple[ProjectQuota, ...]
    cluster: ClusterTotals | None = Field(None, description="For administrators and auditors alone.")


class Needs(Contract):
    """What a job waits for."""

    gpus: int = Field(description="Of its trainer and its own engine; 0: a CPU slot.")
    gpu_type: str | None = Field(None, description="Part of the GPUs' name.")
    gpu_memory_gib: float = Field(0, description="At least, of each GPU.")
    node_labels: dict[str, str] = Field({}, description="Labels that the node must have.")
    shared_engine: bool = Field(False, description="It samples from a shared engine, or not at all.")

    @property
    def words(self) -> str:
        """The same for people: 2 GPUs (h100, 40 GiB each, zone=a)."""
        what = "a CPU slot" if not self.gpus else f"{self.gpus} GPU{'s' if self.gpus > 1 else ''}"
        memory = f"{self.gpu_memory_gib:g} GiB{' each' if self.gpus > 1 else ''}"
        kind = [self.gpu_type, memory if self.gpu_memory_gib else None]
        more = [one for one in kind if one] + [f"{name}={value}" for name, value in self.node_labels.items()]
        engine = " and a shared engine" if self.shared_engine else ""
        return what + (f" ({', '.join(more)})" if more else "") + engine


class QueuedJob(Contract):
    """A job that waits for its place, and why."""

    id: str
    name: str
    project: str
    owner: str
    priority: str
    position: int = Field(description="In the queue of all projects' jobs; 1 is next.")
    since: datetime = Field(description="When it got in line, the last time.")
    needs: Needs
    kind: str = Field(description="A short name of the reason, for programs.")
    reason: str = Field(description="Why it waits, for people.")
    help: str | None = Field(None, description="What would help, for people.")
    ahead: tuple[str, ...] = Field(
        (), description="Ids of the jobs of your projects just before it, the nearest first."
    )
    ahead_own: int = Field(0, description="How many jobs of your projects are before it.")
    ahead_others: int = Field(0, description="How many jobs of other projects are before it.")
    starts_at: datetime | None = Field(None, description="An estimate, where one can be given honestly.")
    basis: str | None = Field(None, description="What the estimate rests on.")


class Queue(Contract):
    """The jobs that wait, in order; of other projects' there is only the number."""

    items: tuple[QueuedJob, ...]
    others: int = Field(description="Waiting jobs of projects that you don't see.")
    left_out: int = Field(0, description="Jobs beyond `limit` that you would see.")


UsageBy = Literal["person", "project", "job"]


class UsageRow(Contract):
    """What one person, project or job held."""

    key: str = Field(description="Id of the person or job, or the project's name.")
    name: str | None = Field(None, description="For people; null: of a job that was deleted.")
    project: str | None = Field(None, description="A job's.")
    gpu_hours: float
    cpu_slot_hours: float
    jobs: int = Field(description="How many jobs that held something in the period.")


class Usage(Contract):
    """GPU-hours and CPU-slot-hours in a period, the most first."""

    start: datetime
    end: datetime
    by: UsageBy
    rows: tuple[UsageRow, ...]
    total: UsageRow = Field(description="Over everything that the caller sees, with `key` total.")
    left_out: int = Field(0, description="Rows beyond `limit`; the total has them too.")
