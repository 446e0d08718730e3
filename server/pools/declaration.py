"""A pool as its operator declares it; each kind of engine adds a section of its own."""

from abc import abstractmethod
from typing import Annotated, Self

from pydantic import Field, model_validator

from powermean.contracts.base import Contract, conflict
from powermean.contracts.pools import Shape
from server.pools.backend import Backend

LOCAL = "local"  # in views: the nodes that come by themselves
PoolName = Annotated[str, Field(min_length=1, max_length=24, pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$")]
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]  # that a shell can export


class Pool(Contract):
    """What all kinds have in common. A kind adds `kind` and a field of that name with its own section."""

    name: PoolName
    kind: str
    shape: Shape
    min: int = Field(0, ge=0, le=1000, description="Nodes that it keeps, with work or without.")
    max: int = Field(ge=0, le=1000, description="Nodes that it has at most.")
    idle_s: float = Field(600, ge=0, le=86_400, description="A node without work is let go after this time.")
    time_limit_s: int | None = Field(
        None, ge=60, le=366 * 86_400, description="Of an allocation; left out: the engine's own."
    )
    drain_s: float = Field(
        900,
        gt=0,
        le=86_400,
        description="Its nodes drain so long before their time is over: a job ends its step, saves a "
        "checkpoint and goes on elsewhere.",
    )
    poll_s: float = Field(10, gt=0, le=600, description="Pause between two looks at its engine.")
    data_dir: str = Field(
        pattern=r"^/", description="Folder on its nodes; each pilot has one of its own in it, for a time."
    )
    start_deadline_s: float = Field(
        600,
        gt=0,
        le=86_400,
        description="From the start of an allocation to its worker's first report; then it is ended.",
    )
    pending_deadline_s: float | None = Field(
        None,
        gt=0,
        le=366 * 86_400,
        description="For so long its engine may let a node wait; then it is cancelled, which loses its place "
        "in the queue, and other pools may be asked for the work. Left out: as long as it takes.",
    )
    environment: dict[VariableName, str] = Field(
        {},
        max_length=100,
        description="For the workers, besides what the server tells them, such as "
        "POWERMEAN_MODEL_ROOTS and HF_HOME. Nothing secret.",
    )

    @property
    def node_shape(self) -> Shape:
        """With a label that says where its nodes come from."""
        return self.shape.model_copy(update={"labels": {"pool": self.name} | self.shape.labels})

    @property
    @abstractmethod
    def term_grace_s(self) -> float:
        """How long after SIGTERM its engine kills what runs in an allocation."""

    @property
    @abstractmethod
    def backend(self) -> Backend:
        """A way to its engine. Reading a file makes none; nothing is connected to here."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.min > self.max:
            raise conflict(("min",), f"is above max ({self.max})", self.min)
        if self.time_limit_s is not None and self.time_limit_s <= self.drain_s:
            raise conflict(("time_limit_s",), f"is not above drain_s ({self.drain_s:g})", self.time_limit_s)
        return self
