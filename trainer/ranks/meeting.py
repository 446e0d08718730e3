"""How the ranks of a job meet, and how they part.

They meet at a store (torch's TCPStore) that rank 0 serves at MASTER_ADDR:MASTER_PORT. Its listening socket
was bound by whoever started rank 0, to one address: without that, torch listens on all. So does gloo, unless
it is told an interface.
"""

import fcntl
import logging
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from rollout.gloo import address_towards
from trainer.failures import CancelledError, TrainingError, failed, is_broken_call
from trainer.ranks.exchange import END, ExchangeError, Place, Ranks
from trainer.ranks.watch import (
    BEAT_S,
    CALL_BEATS,
    EXCHANGE_FAILED,
    LOST_BEATS,
    Watch,
    named,
    sign,
    tell_failure,
)
from trainer.ranks.world import World

log = logging.getLogger(__name__)

STORE_FD = "POWERMEAN_STORE_FD"  # of rank 0's listening socket
MEET_S = 300.0
CALL_S = float(CALL_BEATS)  # a call among ranks
BEYOND_S = 300.0  # for which torch waits longer: the watch names the rank that a call waits for
PART_S = 15.0
LOOK_S = 1.0  # for which the others can still see who is missing
_SAMPLING = timedelta(days=365)  # for which a command may be waited for: who is gone is seen by the watch
_SIOCGIFADDR = 0x8915


@dataclass(frozen=True)
class Deadlines:
    """How long ranks wait for each other."""

    meet_s: float = MEET_S
    call_s: float = CALL_S
    beat_s: float = BEAT_S
    lost_beats: int = LOST_BEATS

    @property
    def lost_s(self) -> float:
        return self.beat_s * self.lost_beats

    @property
    def call_beats(self) -> int:
        return round(self.call_s / self.beat_s)


@contextmanager
def joined(
    world: World, end: Callable[[TrainingError], None], *, cuda: bool, deadlines: Deadlines = Deadlines()
) -> Iterator[Ranks]:
    """The exchange with the other ranks, for as long as the block lasts. Alone there is nothing to join.

    `end` ends this process, with the error of a rank that is lost or has failed: it is called from a thread,
    while this rank may be in a call that can't be broken off. Raises TrainingError (ranks_missing).
    """
    if world.alone:
        yield Ranks(world)
        return
    store = _store(world, deadlines.meet_s)
    _meet(world, store, deadlines.meet_s)
    use_interface_towards(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    if cuda:
        torch.cuda.set_device(world.local_rank)
    place = Place()
    watch = Watch(
        world,
        store.clone(),  # type: ignore[attr-defined]
        end,
        deadlines.beat_s,
        deadlines.lost_beats,
        deadlines.call_beats,
        place,
    )
    watch.start()
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=PrefixStore("group", store),
            rank=world.rank,
            world_size=world.size,
            timeout=timedelta(seconds=deadlines.call_s + BEYOND_S),
        )
        assert dist.group.WORLD is not None
        place.count([dist.group.WORLD])
        ranks = Ranks(world, dist.new_group(backend="gloo", timeout=_SAMPLING), place)
        yield ranks
    except CancelledError:
        _part(ranks, store, watch)
        raise
    except Exception as error:
        raise _reason(error, world, store, watch, deadlines) from error
    _part(ranks, store, watch)


def _store(world: World, timeout_s: float) -> TCPStore:
    """Rank 0 serves it where it was given a socket; otherwise it is there already (torchrun's)."""
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    given = os.environ.get(STORE_FD) if world.leads else None
    try:
        return TCPStore(
            host,
            port,
            is_master=given is not None,
            timeout=timedelta(seconds=timeout_s),
            wait_for_workers=False,
            master_listen_fd=None if given is None else int(given),
        )
    except RuntimeError as error:
        raise _missing([0], world, timeout_s, f", whose store would be at {host}:{port}") from error


def _meet(world: World, store: TCPStore, timeout_s: float) -> None:
    store.set(sign(world.rank), "")
    with suppress(RuntimeError):
        store.wait([sign(rank) for rank in range(world.size)], timedelta(seconds=timeout_s))
        return
    try:
        missing = [rank for rank in range(world.size) if not store.check([sign(rank)])]
    except RuntimeError:
        missing = [0]
    if world.leads:
        time.sleep(LOOK_S)
    raise _missing(missing, world, timeout_s)


def _missing(ranks: list[int], world: World, timeout_s: float, where: str = "") -> TrainingError:
    return TrainingError(
        "ranks_missing",
        f"{named(ranks)} of {world.size} did not join within {timeout_s:.0f} s{where}",
        remedy="see the log of its node; its processes must reach the first node's store "
        "(POWERMEAN_NODE_ADDRESS, POWERMEAN_RANK_PORT)",
        retryable=True,
    )


def _part(ranks: Ranks, store: TCPStore, watch: Watch) -> None:
    """Rank 0 goes last: the others need its store until they watch no more."""
    world = ranks.world
    if world.leads:
        with suppress(ExchangeError):
            ranks.tell(END)
    watch.stop()
    if not watch.takes_over():  # it has found a failure, and ends this process with it
        time.sleep(PART_S)
    try:
        if world.leads:
            store.wait([_left(rank) for rank in range(1, world.size)], timedelta(seconds=PART_S))
        else:
            store.set(_left(world.rank), "")
    except RuntimeError:
        log.warning("not all ranks said that they left")
    dist.destroy_process_group()


def _reason(error: Exception, world: World, store: TCPStore, watch: Watch, deadlines: Deadlines) -> Exception:
    """What the attempt ended by, told to the other ranks. They end too: the group is of no more use.

    Where a call failed because another rank is gone, the watch finds out which, and ends this process.
    """
    if isinstance(error, ExchangeError) or is_broken_call(error):
        time.sleep(deadlines.lost_s + 5 * deadlines.beat_s)
        error = TrainingError(
            EXCHANGE_FAILED,
            f"the ranks are all alive, but a call among them failed: {error}",
            remedy="see the logs of all nodes; check the network between them",
            retryable=True,
        )
    if not watch.takes_over():
        time.sleep(PART_S)
    finish = failed(error)
    assert finish.error is not None
    told = finish.error.model_copy(update={"message": f"rank {world.rank}: {finish.error.message}"})
    with suppress(RuntimeError):
        tell_failure(store, told, retryable=finish.retryable)
        watch.let_others_hear()
        if not world.leads:  # rank 0 records why, and its store is gone, before this node sees an end
            _wait_for_the_end_of(store)
    return error


def _wait_for_the_end_of(store: TCPStore) -> None:
    """Nobody sets this key: the wait ends as rank 0 does, or after a while."""
    store.wait(["rank 0 has ended"], timedelta(seconds=PART_S))


def use_interface_towards(
    host: str, port: int, variables: "os._Environ[str] | dict[str, str]" = os.environ
) -> None:
    """Let gloo and NCCL listen at the interface on the route to `host` alone, unless one was chosen."""
    if (name := interface_of(address_towards(host, port))) is not None:
        # NCCL takes a bare name as the beginning of one.
        for variable, exactly in (("GLOO_SOCKET_IFNAME", ""), ("NCCL_SOCKET_IFNAME", "=")):
            variables.setdefault(variable, exactly + name)


def interface_of(address: str) -> str | None:
    """The name of the network interface that has this address; None if none has."""
    return _interfaces().get(socket.inet_pton(_family(address), address))


def _interfaces() -> Mapping[bytes, str]:
    """Interfaces by their addresses, packed."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has no address
                answer = fcntl.ioctl(asking, _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[answer[20:24]] = name
    with suppress(OSError), open("/proc/net/if_inet6") as lines:
        for line in lines:
            address, *_, name = line.split()
            found[bytes.fromhex(address)] = name
    return found


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _left(rank: int) -> str:
    return f"left/{rank}"
