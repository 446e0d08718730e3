"""Pools: where nodes come from when there is work."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from powermean.contracts.attempts import MOST_MEMORY_MB
from powermean.contracts.base import Contract, Labels


class Shape(Contract):
    """A node as a pool starts it."""

    gpus: int = Field(0, ge=0, le=256)
    gpu_type: str = Field("", max_length=100, description="Part of what its GPUs are called, such as H100.")
    gpu_memory_mb: int = Field(0, ge=0, le=MOST_MEMORY_MB, description="Of each GPU, in MiB; 0: not known.")
    cpu_slots: int = Field(1, ge=0, le=1024, description="CPU jobs that it runs at once.")
    engines: tuple[Literal["transformers", "vllm"], ...] = Field(
        ("transformers",), description="Rollout engines that are installed there."
    )
    labels: Labels = Field({}, description="What specs may ask for by `resources.node_labels`.")


# Of an allocation, in the reasons of attempts that left with it. Who ended it the pool adds once it knows.
BEING_ENDED = "being ended"

PilotPhase = Literal["asked", "pending", "running", "ended"]


class PilotView(Contract):
    """One node that a pool has started, or is starting."""

    id: str
    node: str = Field(description="The node's name, once it reports.")
    state: PilotPhase = Field(description="`asked`: the engine has not confirmed it yet.")
    reason: str = Field(description="Why, in the engine's words.")
    external_id: str | None = Field(description="What the engine calls it, such as a Slurm job's id.")
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    ends_at: datetime | None = Field(description="When its time is over, as far as the engine says.")


class PoolView(Contract):
    """Where nodes come from, what it has and what it lacks."""

    name: str
    kind: str = Field(description="`local`: the nodes that come by themselves.")
    shape: Shape | None = Field(description="Of its nodes; null: they differ.")
    min: int
    max: int | None = Field(description="Nodes that it has at most; null: no limit.")
    error: str | None = Field(description="Why it starts nothing now, in words.")
    states: dict[str, int] = Field(description="How many pilots are in each state.")
    nodes: int = Field(description="Its nodes that are alive.")
    pilots: tuple[PilotView, ...] = Field(description="Those of now, and the last ones that have ended.")


class PoolList(Contract):
    """All pools."""

    items: tuple[PoolView, ...]
