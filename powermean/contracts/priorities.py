"""Priority classes: names that specs may give, declared by administrators."""

from typing import Annotated, Literal

from pydantic import Field, StrictInt, StringConstraints

from powermean.contracts.base import Contract
from powermean.contracts.names import PRIORITY_NAME

DEFAULT_PRIORITY = "normal"
PriorityName = Annotated[str, StringConstraints(pattern=PRIORITY_NAME)]
PriorityRole = Literal["member", "maintainer", "admin"]


class PriorityRank(Contract):
    """Where a class stands, and who may use it."""

    value: StrictInt = Field(ge=-1_000_000, le=1_000_000, description="Higher values go first.")
    role: PriorityRole = Field("member", description="The least role in a job's project that may use it.")


class PriorityClass(PriorityRank):
    """A priority that a spec may name."""

    name: PriorityName


class PriorityClassList(Contract):
    """The priority classes, the highest first."""

    items: tuple[PriorityClass, ...]


class PriorityChange(Contract):
    """Request for another priority of a job."""

    priority: PriorityName
