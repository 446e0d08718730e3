"""Who held which GPU or CPU slot when: what the cluster page draws."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from powermean.contracts.base import Contract

Activity = Literal["preparing", "sampling", "scoring", "updating", "publishing", "evaluating", "saving"]


class Span(Contract):
    """An attempt on a lane."""

    start: datetime
    end: datetime | None = Field(None, description="null: it still holds it.")
    attempt: str | None = Field(None, description="null: another project's, or of a job that was deleted.")


class Lane(Contract):
    """A GPU, or a CPU slot, and who held it; what lies between the spans was idle."""

    node: str
    gpu: str | None = Field(None, description="UUID; null: a CPU slot.")
    slot: int = Field(description="Number on the node, from 0. CPU slots are numbered as they were taken.")
    known: bool = Field(True, description="Whether its node is connected and reports it.")
    engine: str | None = Field(
        None,
        description="Name of the shared engine that holds it now; "
        "'of another project' if none of yours may use it.",
    )
    spans: tuple[Span, ...]
    busy_s: float = Field(description="Seconds of the window in which somebody held it.")


class LaneAttempt(Contract):
    """An attempt on the lanes, and what it did: (seconds after `since`, activity from then on)."""

    job: str
    name: str
    project: str
    state: str = Field(description="The job's, now.")
    phases: tuple[tuple[float, Activity], ...] = ()


class ClusterLanes(Contract):
    """The lanes of a window of time."""

    since: datetime
    until: datetime
    lanes: tuple[Lane, ...]
    attempts: dict[str, LaneAttempt] = Field(description="By id; of your projects alone.")
    phases: bool = Field(description="Whether the window is short enough for phases.")
    left_out: int = Field(0, description="Older allocations in the window beyond the most that are shown.")
