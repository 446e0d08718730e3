"""What ranks tell each other: commands of rank 0, and numbers that are added up.

Everything goes as JSON and tensors; nothing is unpickled. Alone, a rank keeps what it has.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from trainer.ranks.world import World


class ExchangeError(Exception):
    """A call among the ranks failed: another rank has ended, or does not answer."""


@dataclass(frozen=True)
class Command:
    """What rank 0 has all ranks do."""

    do: str
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # on the CPU


@dataclass
class Place:
    """How far a rank has come in what all ranks do: equal on all of them, unless one is behind."""

    calls: int = 0
    passes: int = 0  # since the last call: ranks that repeat one differ until the next
    doing: str = ""  # the last command
    _backends: tuple[Any, ...] = ()

    def called(self) -> None:
        self.calls, self.passes = self.calls + 1, 0

    def count(self, groups: Sequence[dist.ProcessGroup]) -> None:
        """Count the collectives of these groups from now on, FSDP2's among them."""
        for group in groups:
            for device in group._device_types:
                backend: Any = group._get_backend(device)  # torch's types lack how it numbers its calls
                if any(backend is known for known in self._backends):
                    continue
                with suppress(RuntimeError):  # it numbers none
                    backend._get_sequence_number_for_group()
                    self._backends = (*self._backends, backend)

    def collectives(self) -> int:
        """How many this rank has begun. Any thread may ask while another waits in one."""
        return sum(backend._get_sequence_number_for_group() for backend in self._backends)


Duty = Callable[[Command], object]
END = "end"


@dataclass(frozen=True)
class Ranks:
    """This rank's exchange with the others. All of them must make the same calls in the same order."""

    world: World = field(default_factory=World)
    commands: dist.ProcessGroup | None = None  # its calls may wait for as long as rank 0 samples
    place: Place = field(default_factory=Place)

    def total(self, values: Tensor) -> Tensor:
        """The sum over ranks."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def add_up(self, values: Tensor) -> None:
        """The same, in place."""
        if not self.world.alone:
            with self._calling():
                dist.all_reduce(values)

    def largest(self, values: Tensor) -> Tensor:
        """The largest over ranks, of each number."""
        return self._reduced(values, dist.ReduceOp.MAX)

    def merged(self, values: Tensor, mine: range) -> Tensor:
        """Rows [n, ...] of which this rank knows those of `mine`, and no other rank the same: all of them."""
        if self.world.alone:
            return values
        known = torch.zeros_like(values)
        known[mine.start : mine.stop] = values[mine.start : mine.stop]
        return self.total(known)

    def any(self, flags: Tensor) -> Tensor:
        """Bool [n]: what is true on any rank."""
        return self._reduced(flags.to(torch.uint8), dist.ReduceOp.MAX).bool()

    def any_of(self, flag: bool) -> bool:
        """Whether it is true on any rank."""
        return bool(self.most(int(flag)))

    def most(self, number: int) -> int:
        """The largest over ranks."""
        return int(self.largest(torch.tensor([number])))

    def least(self, number: int) -> int:
        """The smallest over ranks."""
        return -self.most(-number)

    def wait_for_all(self) -> None:
        """Returns when all ranks have come here."""
        self.most(0)

    def tell(self, do: str, tensors: Mapping[str, Tensor] | None = None, **facts: object) -> None:
        """Rank 0: have the others do something, which this rank then does too."""
        if self.world.alone:
            return
        given = {name: value.detach().cpu().contiguous() for name, value in (tensors or {}).items()}
        shapes = {name: [_name(value.dtype), list(value.shape)] for name, value in given.items()}
        header = json.dumps({"do": do, "facts": facts, "tensors": shapes}).encode()
        self.place.called()
        self.place.doing = do
        self._sent(torch.tensor([len(header)]))
        self._sent(torch.frombuffer(bytearray(header), dtype=torch.uint8))
        for value in given.values():
            self._sent(_bytes(value))

    def told(self) -> Command:
        """The other ranks: the next command, for which they wait as long as it takes."""
        length = self._sent(torch.zeros(1, dtype=torch.int64))
        self.place.called()  # not before: while rank 0 samples, nobody is behind
        text = self._sent(torch.zeros(int(length), dtype=torch.uint8))
        header = json.loads(text.numpy().tobytes())
        self.place.doing = header["do"]
        tensors = {}
        for name, (dtype, shape) in header["tensors"].items():
            tensors[name] = torch.zeros(shape, dtype=getattr(torch, dtype))
            self._sent(_bytes(tensors[name]))
        return Command(header["do"], header["facts"], tensors)

    def _sent(self, values: Tensor) -> Tensor:
        if values.numel():
            with _checked():
                dist.broadcast(values, src=0, group=self.commands)
        return values

    def _reduced(self, values: Tensor, by: "dist.ReduceOp.RedOpType") -> Tensor:
        if self.world.alone or not values.numel():
            return values
        values = values.clone(memory_format=torch.contiguous_format)
        with self._calling():
            dist.all_reduce(values, op=by)
        return values

    @contextmanager
    def _calling(self) -> Iterator[None]:
        self.place.called()
        with _checked():
            yield


def follow(ranks: Ranks, duties: Mapping[str, Duty]) -> None:
    """The other ranks' run: do what rank 0 says, until it says that this was all."""
    while (command := ranks.told()).do != END:
        duties[command.do](command)


@contextmanager
def _checked() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise ExchangeError(str(error).split("\n")[0]) from error


def _bytes(values: Tensor) -> Tensor:
    return values.reshape(-1).view(torch.uint8)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
