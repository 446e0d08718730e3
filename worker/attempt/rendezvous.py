"""Where the ranks of an attempt meet: a socket at the first node's own address, which its rank 0 listens on.

torchrun's agent and TCPStore's own listener would accept anybody on all interfaces.
"""

import errno
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from powermean.contracts.attempts import Claim, Finish, Member, MemberReport
from powermean.contracts.names import PORT_TAKEN
from powermean.contracts.phases import STARTING_TRAINER
from powermean.errors import PowermeanError
from worker.attempt.heartbeat import Heartbeat
from worker.attempt_dir import PHASE_CHARACTERS
from worker.settings import is_loopback, is_nobodys

LOOPBACK = "127.0.0.1"
CONNECT_S = 10.0
BACKLOG = 4096  # the other nodes' first connections wait there until rank 0 runs
_HELP = "Set POWERMEAN_NODE_ADDRESS to an address of the node that other nodes reach (docs/operations.md)."


class RendezvousError(PowermeanError):
    """The ranks of an attempt can't meet. Another attempt may run on other nodes, so a retry may succeed,
    unless a node's address is one that no other node reaches.
    """

    retryable = True

    @property
    def end(self) -> Finish:
        """That of the attempt."""
        return Finish(outcome="failed", error=self.error, retryable=self.retryable)


@dataclass(frozen=True)
class Meeting:
    """Where ranks meet."""

    address: str
    port: int


class Rendezvous:
    """How the ranks of one node find those of the others: by what the heartbeats tell and bring back."""

    def __init__(self, claim: Claim, heartbeat: Heartbeat, address: str, port: int, limit_s: float) -> None:
        """`address` and `port` are this node's for jobs of several nodes; others stay on the loopback."""
        self._claim = claim
        self._heartbeat = heartbeat
        self._nodes = claim.spec.resources.nodes
        self._address, self._port = (LOOPBACK, 0) if self._nodes == 1 else (address, port)
        self._limit_s = limit_s
        self._looked = self._nodes == 1 or claim.node_rank == 0

    @contextmanager
    def listening(self) -> Iterator[socket.socket | None]:
        """The socket where the ranks meet, on the first node of a job that has several ranks. The other nodes
        are told of it at once.

        Raises RendezvousError, on the other nodes too if their address is not their own.
        """
        if self._claim.spec.resources.ranks == 1:
            yield None
        elif self._claim.node_rank > 0:
            listen(self._address, 0).close()
            self._tell(None)
            yield None
        else:
            with listen(self._address, self._port) as listener:
                self._tell(listener)
                yield listener

    def _tell(self, listener: socket.socket | None, ready: bool = False) -> None:
        if self._nodes > 1:
            port = listener.getsockname()[1] if listener else None
            self._heartbeat.tell(MemberReport(address=self._address, store_port=port, ready=ready))

    def look(self) -> None:
        """Connect to the first node once, as soon as it has said where it is: before much is done in vain.

        Raises RendezvousError.
        """
        first = next((one for one in self._heartbeat.members if one.node_rank == 0 and one.report), None)
        if not self._looked and first is not None:
            self._looked = True
            try_to_reach(first, self._address)

    def meet(self, listener: socket.socket | None, rest: Callable[[], None]) -> Meeting:
        """Where to meet, once all nodes have said that they are ready. Raises RendezvousError."""
        if self._nodes == 1:
            return Meeting(self._address, listener.getsockname()[1] if listener else 0)
        heartbeat = self._heartbeat
        self._tell(listener, ready=True)
        deadline = time.monotonic() + self._limit_s
        while away := missing(self._claim, heartbeat.members):
            heartbeat.phase = f"waiting for {', '.join(away)}"[:PHASE_CHARACTERS]
            if time.monotonic() > deadline:
                said = f"{', '.join(away)} did not get ready within {self._limit_s:.0f} s"
                remedy = "See the logs of these nodes."
                raise RendezvousError(said, code="rendezvous_timeout", remedy=remedy)
            rest()
        self.look()
        heartbeat.phase = STARTING_TRAINER
        first = next(member for member in heartbeat.members if member.node_rank == 0)
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
    if is_nobodys(str(place[0])):  # some names, such as 0, stand for it: anybody could reach the store
        said = f"POWERMEAN_NODE_ADDRESS is {address}, which is not the address of one host"
        raise RendezvousError(said, code="node_address_foreign", remedy=_HELP)
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # the last job's connections linger
        listener.bind(place)
        listener.listen(BACKLOG)  # at once: until then another socket may be bound to the same port
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


def try_to_reach(first: Member, own: str) -> None:
    """Connect to the first node once, since the ranks would try for long and not say where. Raises
    RendezvousError, also if only one of that node's address and `own`, this node's, is the loopback.
    """
    address = first.report.address if first.report else ""
    port = first.report.store_port if first.report else None
    if is_loopback(own) != is_loopback(address):
        whose, hidden = ("this node", own) if is_loopback(own) else (first.node_id, address)
        said = f"POWERMEAN_NODE_ADDRESS of {whose} is {hidden}, where no other node reaches it"
        raise RendezvousError(said, code="node_address_loopback", remedy=_HELP, retryable=False)
    try:
        socket.create_connection((address, port or 0), CONNECT_S).close()
    except OSError as error:
        raise RendezvousError(
            f"{first.node_id} can't be reached at {address}, port {port}: {error}",
            code="rendezvous_unreachable",
            remedy=f"Set POWERMEAN_NODE_ADDRESS of {first.node_id} to an address that other nodes reach, and "
            "let them through to it (docs/operations.md).",
            retryable=not is_loopback(address),
        ) from error


def missing(claim: Claim, members: Iterable[Member]) -> tuple[str, ...]:
    """The attempt's nodes that have not said that they are ready."""
    there = {member.node_rank for member in members if member.report is not None and member.report.ready}
    names = [part.node_id for part in claim.allocations if part.role == "trainer"]
    return tuple(names[rank] for rank in range(claim.spec.resources.nodes) if rank not in there)
