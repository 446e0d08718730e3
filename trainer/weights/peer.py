"""The interface of the trainer's end of a channel for weights."""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from powermean.contracts.rollout import PublishRequest
from trainer.weights.files import Target

Weights = Sequence[tuple[str, Tensor]]


class Peer(Protocol):
    """The trainer's end of one channel. A failed end is closed and not used again."""

    def open(self, target: Target, job_id: str, attempt: int, timeout_s: float) -> None:
        """Connect to the engine's worker. Raises RolloutError, TrainingError (transfer_failed)."""

    def publish(self, target: Target, request: PublishRequest, weights: Weights, timeout_s: float) -> object:
        """Announce the weights and send them. Raises RolloutError, TrainingError (transfer_failed)."""

    def close(self) -> None:
        """Close the connection."""
