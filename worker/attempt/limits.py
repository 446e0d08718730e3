"""What ends an attempt from outside its processes: limits of time, and orders."""

from dataclasses import dataclass

from worker.attempt.outcome import Stop


@dataclass(frozen=True)
class Limits:
    """How long the supervisor waits, in seconds."""

    partition_s: float = 900.0  # for a server that can't be reached
    prepare_s: float = 3600.0  # for the model to be ready
    grace_s: float = 10.0  # between SIGTERM and SIGKILL
    order_s: float = 900.0  # for a trainer to checkpoint and exit, or, once it trains, to finish early
    stall_s: float = 3600.0  # without a sign of progress
    stopping_s: float = 5.0  # for the last posts when the node stops
    meet_s: float = 3900.0  # for the job's other nodes to be ready, which may prepare the model for long
    frozen_s: float = 10.0  # for a rank that a signal has stopped, while the others wait for it
    ranks_grace_s: float = 0.5  # between SIGTERM and SIGKILL once a rank has failed
    pilot: str | None = None  # the allocation of a pool that it runs in
    taken_s: float = 22.0  # to save a checkpoint, once that allocation is being ended


class AbandonedError(Exception):
    """The attempt is not ours to end: kill, tell nobody."""


class StopError(Exception):
    """The attempt is to end, and the end to be told."""

    def __init__(self, why: Stop) -> None:
        super().__init__(why)
        self.why: Stop = why
