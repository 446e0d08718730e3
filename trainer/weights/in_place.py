"""New weights in place: the engine samples from the trainer's own, which both have in shared memory.

A publish sends no weights then, and there is one copy of them. But the engine must not sample while the
optimiser changes them: `hold_request` stops it before, the next publish lets it go on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from torch import Tensor, nn

from powermean.contracts.rollout import HoldRequest, PublishRequest
from rollout.shared_weights import ALIGNMENT, file_head, mapped, replace_weights
from trainer.learner.model_state import unique_weights
from trainer.weights.files import SHARED_MEMORY, Target, file_name, new_file, numbers


@dataclass
class InPlaceWriter:
    """See trainer.weights.files.Publisher. The first `write` moves the model's weights into shared memory."""

    job_id: str
    attempt: int
    shared_memory: Path = SHARED_MEMORY
    from_the_start: bool = field(default=True, init=False)  # or there would be two copies in the first step
    _moved: bool = field(default=False, init=False)

    def write(self, model: nn.Module, version: int) -> PublishRequest:
        """The request; what it announces is there. Raises OSError where shared memory has no room.

        A file that is gone is made anew: systemd removes those of a user who logs out (RemoveIPC).
        """
        if not (self._moved and self._path.exists()):
            move_weights(model, self._path)
            self._moved = True
        return PublishRequest(
            job_id=self.job_id,
            attempt=self.attempt,
            version=version,
            method="in_place",
            memory=self._path.name,
        )

    def publish(self, target: Target, request: PublishRequest, timeout_s: float) -> object:
        """Let the engine sample from what the weights are now."""
        return target.publish(request, timeout_s)

    def discard(self, version: int) -> None:
        """Nothing to do: there is no copy."""

    def hold_request(self, version: int) -> HoldRequest:
        """See Publisher. The engine would sample from weights in the making."""
        return HoldRequest(job_id=self.job_id, attempt=self.attempt, version=version)

    def close(self) -> None:
        """Remove the file. The memory is free once neither the engine nor the model uses it."""
        self._path.unlink(missing_ok=True)

    @property
    def _path(self) -> Path:
        return self.shared_memory / file_name(self.job_id, self.attempt, "weights")


def move_weights(model: nn.Module, path: Path) -> None:
    """Move a model's weights into a new safetensors file, and let them be views of it.

    One weight goes after the other, so that there is never a second copy of them all. Raises OSError.
    """
    state = model.state_dict(keep_vars=True)
    # Odd sizes last: before them, every weight begins where it would in memory of PyTorch's own.
    weights = sorted(unique_weights(state), key=lambda named: named[1].nbytes % ALIGNMENT)
    head = file_head((name, weight.dtype, weight.shape) for name, weight in weights)
    with new_file(path) as file:
        file.truncate(len(head) + sum(weight.nbytes for _, weight in weights))
        _write(file, memoryview(head))
        replace_weights(state, _moved(weights, file, mapped(path, writable=True)))


def _moved(
    weights: Sequence[tuple[str, Tensor]], file: FileIO, views: Mapping[str, Tensor]
) -> Iterator[tuple[str, Tensor]]:
    for name, weight in weights:
        # Written, not copied into the view: in memory that is full, that would end the process.
        _write(file, numbers(weight, weight.dtype))
        yield name, views[name]


def _write(file: FileIO, view: memoryview) -> None:
    while view:
        view = view[file.write(view) :]
