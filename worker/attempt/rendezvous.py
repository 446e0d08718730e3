"""Where the ranks of an attempt meet: a socket at the first node's own address, which its rank 0 listens on.

torchrun's agent and TCPStore's own listener would accept anybody on all interfaces.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from powermean.contracts.attempts import Claim, Member, MemberReport
from powermean.contracts.phases import STARTING_TRAINER
from powermean.errors import PowermeanError
from worker.attempt.heartbeat import Heartbeat
from worker.attempt_dir import PHASE_CHARACTERS
from worker.settings import is_nobodys

LOOPBACK = "127.0.0.1"
PORT_TAKEN = "rendezvous_port_taken"
CONNECT_S = 10.0
_HELP = "Set POWERMEAN_NODE_ADDRESS to an address of the node that other nodes reach (docs/operations.md)."


class RendezvousError(PowermeanError):
    """The ranks of an attempt can't meet. Another attempt may run on other nodes, so a retry may succeed."""

    retryable = True


@dataclass(frozen=True)
class Meeting:
    """Where ranks meet."""

    address: str
    port: int


class Rendezvous:
    """How the ranks of one node find those of the others: by what the heartbeats tell and bring back."""

    def __init__(self, claim: Claim, address: str, port: int, limit_s: float) -> None:
        """`address` and `port` are this node's for jobs of several nodes; others stay on the loopback."""
        self._claim = claim
        self._nodes = claim.spec.resources.nodes
        self._address, self._port = (LOOPBACK, 0) if self._nodes == 1 else (address, port)
        self._limit_s = limit_s

    @contextmanager
    def listening(self) -> Iterator[socket.socket | None]:
        """The socket where the ranks meet, on the first node of a job that has several ranks.

        Raises RendezvousError, on the other nodes too if their address is not their own.
        """
        if self._claim.spec.resources.ranks == 1:
            yield None
        elif self._claim.node_rank > 0:
            listen(self._address, 0).close()
            yield None
        else:
            with listen(self._address, self._port) as listener:
                yield listener

    def meet(self, listener: socket.socket | None, heartbeat: Heartbeat, rest: Callable[[], None]) -> Meeting:
        """Where to meet, once all nodes have said that they are ready. Raises RendezvousError."""
        port: int | None = listener.getsockname()[1] if listener else None
        if self._nodes == 1:
            return Meeting(self._address, port or 0)
        heartbeat.tell(MemberReport(address=self._address, store_port=port))
        deadline = time.monotonic() + self._limit_s
        while away := missing(self._claim, heartbeat.members):
            heartbeat.phase = f"waiting for {', '.join(away)}"[:PHASE_CHARACTERS]
            if time.monotonic() > deadline:
                said = f"{', '.join(away)} did not get ready within {self._limit_s:.0f} s"
                remedy = "See the logs of these nodes."
                raise RendezvousError(said, code="rendezvous_timeout", remedy=remedy)
            rest()
        heartbeat.phase = STARTING_TRAINER
        first = next(member for member in heartbeat.members if member.node_rank == 0)
        if listener is None:
            try_to_reach(first)
        assert first.report is not None
        return Meeting(first.report.address, first.report.store_port or 0)


def listen(address: str, port: int) -> socket.socket:
    """A socket that listens on this host's own address. Raises RendezvousError, which says what is wrong."""
    try:
        family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
    except socket.gaierror as error:
        raise RendezvousError(
            f"POWERMEAN_NODE_ADDRESS is {address}, which has no address: {error.strerror}",
            code="node_address_unknown",
            remedy=_HELP,
        ) from error
    if is_nobodys(place[0]):  # some names, such as 0, stand for it: anybody could reach the store
        said = f"POWERMEAN_NODE_ADDRESS is {address}, which is not the address of one host"
        raise RendezvousError(said, code="node_address_foreign", remedy=_HELP)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last job's connections linger
        listener.bind(place)
        listener.listen()  # at once: until then another socket may be bound to the same port
    except OSError as error:
        listener.close()
        raise _not_bound(error, address, port) from error
    return listener


def _not_bound(error: OSError, address: str, port: int) -> RendezvousError:
    if error.errno == errno.EADDRNOTAVAIL:
        said = f"POWERMEAN_NODE_ADDRESS is {address}, which is not an address of this host"
        return RendezvousError(said, code="node_address_foreign", remedy=_HELP)
    if error.errno == errno.EADDRINUSE:
        return RendezvousError(
            f"Port {port} of {address} is taken",
            code=PORT_TAKEN,
            remedy="Another job of several nodes may start here. POWERMEAN_RANK_PORT=0 takes any free port.",
        )
    said = f"POWERMEAN_RANK_PORT: can't listen on port {port} of {address}: {error.strerror}"
    return RendezvousError(said, code="rendezvous_port_refused")


def try_to_reach(first: Member) -> None:
    """Connect to the first node once, since the ranks would try for long and not say where."""
    address = first.report.address if first.report else ""
    port = first.report.store_port if first.report else None
    try:
        socket.create_connection((address, port or 0), CONNECT_S).close()
    except OSError as error:
        raise RendezvousError(
            f"{first.node_id} can't be reached at {address}, port {port}: {error}",
            code="rendezvous_unreachable",
            remedy=f"Set POWERMEAN_NODE_ADDRESS of {first.node_id} to an address that other nodes reach, and "
            "let them through to it (docs/operations.md).",
        ) from error


def missing(claim: Claim, members: Iterable[Member]) -> tuple[str, ...]:
    """The attempt's nodes that have not said where they are."""
    there = {member.node_rank for member in members if member.report is not None}
    names = [part.node_id for part in claim.allocations if part.role == "trainer"]
    return tuple(names[rank] for rank in range(claim.spec.resources.nodes) if rank not in there)
