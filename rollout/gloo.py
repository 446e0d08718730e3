"""The gloo channel: weights as plain bytes over TCP, from the trainer straight to vLLM's worker.

Both ends are in this file, because they have to agree. The trainer serves a store; the worker connects and
says there what it is ready for, so the trainer never enters a call that the worker will not make. If one side
dies, the connection breaks and the other's call ends at once; if it hangs, the call ends at the timeout.

The sockets have no authentication. Forged weights are refused, because their hash comes over the rollout
interface, but anyone who can reach the ports can read weights in transit. So the sockets are bound to one
address, loopback on a single host.
"""

import hashlib
import socket
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch.distributed import Store, TCPStore  # type: ignore[attr-defined]
from torch.distributed.distributed_c10d import ProcessGroupGloo

from powermean.errors import PowermeanError

_TRAINER, _WORKER = 0, 1
_HERE = "worker/here"


class TransferError(PowermeanError):
    """The other end is gone or did not respond in time."""


@dataclass(frozen=True)
class Announced:
    """One announced tensor."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


class Sender:
    """The trainer's end, listening from the start. Calls raise TransferError instead of waiting forever."""

    def __init__(self, address: str, timeout_s: float) -> None:
        """`address` is the only address it listens on."""
        self._address = address
        self._timeout = timedelta(seconds=timeout_s)
        listener = socket.create_server((address, 0), family=_family(address))
        self.port = int(listener.getsockname()[1])
        self._store: Store | None = TCPStore(
            address,
            self.port,
            world_size=2,
            is_master=True,
            timeout=self._timeout,
            wait_for_workers=False,
            master_listen_fd=listener.detach(),
        )
        self._group: Any = None

    def is_met(self) -> bool:
        """Whether the worker has connected, so that `meet` can be called."""
        return self._told(_HERE)

    def meet(self) -> None:
        """Complete the connection with the worker."""
        assert self._store is not None
        self._group = _group(self._store, _TRAINER, self._address, self._timeout)

    def is_awaited(self, version: int) -> bool:
        """Whether the worker is waiting for this version's tensors, so that `send` can be called."""
        return self._told(_ready(version))

    def send(self, tensors: Iterable[Tensor]) -> None:
        """Send CPU tensors in order; returns when the last one has been sent."""
        assert self._group is not None
        try:
            for place, tensor in enumerate(tensors):
                if tensor.numel():
                    self._group.send([_bytes(tensor)], _WORKER, place).wait()
        except RuntimeError as error:
            raise TransferError(f"vLLM's worker accepted no more weights: {_reason(error)}") from error

    def close(self) -> None:
        """Close the connection and the port; the other end notices at once."""
        self._group = self._store = None

    def _told(self, key: str) -> bool:
        return self._store is not None and bool(self._store.check([key]))


class Receiver:
    """The worker's end. Its calls raise TransferError instead of waiting forever."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        """Connect to the trainer."""
        timeout = timedelta(seconds=timeout_s)
        try:
            self._store: Store | None = TCPStore(host, port, world_size=2, is_master=False, timeout=timeout)
            self._store.set(_HERE, "1")
        except RuntimeError as error:
            raise TransferError(f"no trainer is listening at {host}:{port}: {_reason(error)}") from error
        self._group: Any = _group(self._store, _WORKER, address_towards(host, port), timeout)

    def receive(
        self, version: int, announced: Sequence[Announced], sha256: str
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields the tensors as they arrive; after the last, raises TransferError if the hash is wrong."""
        assert self._store is not None
        assert self._group is not None
        digest = hashlib.sha256()
        try:
            self._store.set(_ready(version), "1")
            for place, one in enumerate(announced):
                tensor = torch.empty(one.shape, dtype=one.dtype)
                if tensor.numel():
                    self._group.recv([_bytes(tensor)], _TRAINER, place).wait()
                    digest.update(_bytes(tensor).numpy().data)
                yield one.name, tensor
        except RuntimeError as error:
            raise TransferError(f"the trainer sent no more weights: {_reason(error)}") from error
        if digest.hexdigest() != sha256:
            raise TransferError(f"weights_corrupt: their sha256 is {digest.hexdigest()}, not {sha256}")

    def close(self) -> None:
        """Close the connection; the other end notices at once."""
        self._group = self._store = None


def tensors_sha256(tensors: Iterable[Tensor]) -> str:
    """The sha256 of the bytes of CPU tensors, one after the other."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(_bytes(tensor).numpy().data)
    return digest.hexdigest()


def address_towards(host: str, port: int) -> str:
    """This machine's address on the route to `host`. Sends nothing."""
    family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with closing(socket.socket(family, kind, protocol)) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def _group(store: Store, rank: int, address: str, timeout: timedelta) -> Any:
    """A ProcessGroupGloo of two; torch's type stubs lack its options, send and recv."""
    options = ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    options._devices = [ProcessGroupGloo.create_device(hostname=address)]
    options._timeout = timeout
    try:
        return ProcessGroupGloo(store, rank, 2, options)
    except RuntimeError as error:
        raise TransferError(f"the other end of the channel did not connect: {_reason(error)}") from error


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _ready(version: int) -> str:
    return f"worker/ready/{version}"


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _reason(error: Exception) -> str:
    """The first line of torch's message, without its advice."""
    return str(error).split("\n")[0].split(". This is typically")[0][:300]
