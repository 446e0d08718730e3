"""What an engine such as Slurm is asked: start a pilot, end one, say which there are.

A *pilot* is what the engine runs for us: one `python -m worker` inside an allocation of the pool's shape. The
server keeps a row for each; an engine's word about it counts, its silence doesn't.

Every call returns or fails within its own deadline, and none is made in a database transaction.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

from powermean.contracts.pools import Shape
from powermean.errors import PowermeanError


class PoolError(PowermeanError):
    """The engine can't be reached, refused what was asked, or answered nonsense; `message` has its words."""

    code = "pool_error"


@dataclass(frozen=True)
class PilotOrder:
    """What a backend is asked to start."""

    pilot_id: str  # of small letters, digits and dashes, at most 40; no other pilot ever has it
    node_id: str  # the node's name, which the worker reports under
    environment: Mapping[str, str]  # of `python -m worker`: POWERMEAN_*, nothing secret
    # Of the worker, too, but in no list of processes and no listing of the engine's jobs.
    secrets: Mapping[str, str] = field(repr=False)
    shape: Shape
    time_limit_s: int | None  # after which the engine ends it; None: the engine's own limit


class PilotState(StrEnum):
    """Where a pilot is in its life, as its engine sees it."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"  # nothing of it runs any more


@dataclass(frozen=True)
class Seen:
    """One pilot as its engine sees it."""

    pilot_id: str
    external_id: str
    state: PilotState
    reason: str  # in the engine's words: Priority, TIMEOUT, CANCELLED by 1000, NODE_FAIL, Unschedulable
    ends_at: datetime | None = None  # when its time is over, as far as the engine says; with a time zone
    # It ended, or is about to, because the engine wanted it so (time limit, cancelled, preempted), and not
    # because it failed.
    revoked: bool = False


def find_pilot(pilot_id: str, external_id: str | None, seen: Sequence[Seen]) -> Seen | None:
    """The pilot in what its engine sees. There may be a double: it has ended only if both have."""
    found = [one for one in seen if one.pilot_id == pilot_id]
    found.sort(key=lambda one: (one.state is PilotState.ENDED, one.external_id != external_id))
    return found[0] if found else None


class Backend(Protocol):
    """One pool's engine."""

    def submit(self, order: PilotOrder) -> str:
        """Start a pilot; its external id. A second submit with the same `pilot_id` must be harmless.

        Raises PoolError, also where nobody knows whether the engine has taken the order: `list` will tell.
        """
        ...

    def cancel(self, external_id: str) -> None:
        """End a pilot; one that has ended or is not known any more is no error. Raises PoolError."""
        ...

    def why(self, ended: Sequence[Seen]) -> Mapping[str, str]:
        """In plain words who or what ended these, by pilot, where the engine knows more than their `reason`.

        It never raises: their ends are no less true where nothing more can be learned.
        """
        ...

    def clean(self, pilot_id: str) -> None:
        """Remove what it keeps for a pilot that has ended. Raises PoolError."""
        ...

    def list(self) -> Sequence[Seen]:
        """Every pilot of this pool that the engine knows. One that it leaves out is gone for good.

        Raises PoolError rather than answer in part.
        """
        ...
