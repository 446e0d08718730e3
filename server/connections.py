"""What clients may hold open: how many connections, of whom, and for how long without going on.

A connection is a stranger's until a request on it has shown a key; then it is a person's, or a node's (which
includes attempts). Strangers have a quarter of all connections, people half, and the rest is for nodes. A
stranger who comes when there are too many takes the place of the one who has been there longest: whoever has
a key shows it within milliseconds, and who only holds connections open displaces others like himself.
"""

import asyncio
import ipaddress
import logging
from collections import Counter
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Literal, get_args

from uvicorn.protocols.http.auto import AutoHTTPProtocol

from server.errors import UnavailableError

HEAD_S = 20.0  # for the head of a request, from its first byte or from the start of the connection
LAST_HEAD_S = 2.0  # for what is left of one when the server stops
HEAD_BYTES = 64 * 1024
UNREAD_S = 30.0  # for a client to go on reading its answer
LINGER_S = 1.0  # for a refusal to be read
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

Who = Literal["stranger", "person", "node"]

log = logging.getLogger(__name__)


class Connections:
    """The open connections of one server process. Lives in its event loop."""

    def __init__(self, most: int, most_per_client: int, proxies: Sequence[str] = ()) -> None:
        """A proxy's connections are many clients': they are not counted by address."""
        self.most = most
        self.most_per_client = most_per_client
        self._proxies = [ipaddress.ip_network(proxy) for proxy in proxies]
        self.draining = False  # the server is about to stop: answers close their connections
        self._strangers: dict[Connection, None] = {}  # oldest first
        self._held: Counter[tuple[Who, str | None]] = Counter()  # by address too, None for all

    def count(self, who: Who, address: str | None = None) -> int:
        """How many are open."""
        return self._held[who, address]

    def admit(self, new: "Connection") -> None:
        """A new connection is a stranger's; another one may have to go."""
        gone = self._in_the_way_of(new)
        self._strangers[new] = None
        self._add(new, 1)
        if gone is not None:
            log.warning("too many connections: one of %s is closed", gone.address or "a proxy's")
            self._strangers.pop(gone)
            gone.refuse()

    def know(self, connection: "Connection", who: Who) -> None:
        """A request has shown whose the connection is. Raises UnavailableError if people have too many."""
        if who == "person":
            address = connection.address
            crowded = address is not None and self.count("person", address) >= self.most_per_client
            if crowded or self.count("person") >= self.most // 2:
                raise UnavailableError(
                    f"too many connections are open{' from your address' if crowded else ''}",
                    remedy="Close pages and streams that you do not need, or ask again later.",
                )
        self._strangers.pop(connection, None)
        self._add(connection, -1)
        connection.who = who
        self._add(connection, 1)

    def forget(self, connection: "Connection") -> None:
        """The connection is closed."""
        self._strangers.pop(connection, None)
        self._add(connection, -1)

    def client_of(self, ip: str | None) -> str | None:
        """The address to count for: of IPv6 the network, which is one client's; None for a proxy."""
        try:
            address = ipaddress.ip_address(ip or "")
        except ValueError:
            return ip
        if any(address in proxy for proxy in self._proxies):
            return None
        return str(ipaddress.ip_network((address, 64), strict=False)) if address.version == 6 else ip

    def _in_the_way_of(self, new: "Connection") -> "Connection | None":
        if new.address is not None and self.count("stranger", new.address) >= self.most_per_client:
            return next((one for one in self._strangers if one.address == new.address), None)
        in_all = sum(self.count(who) for who in get_args(Who))
        if len(self._strangers) >= self.most // 4 or in_all >= self.most:
            return next(iter(self._strangers), new)
        return None

    def _add(self, connection: "Connection", one: int) -> None:
        keys = {(connection.who, None), (connection.who, connection.address)}
        for key in keys:
            self._held[key] += one
            if not self._held[key]:
                del self._held[key]


_current: ContextVar["Connection | None"] = ContextVar("connection", default=None)


def known_as(who: Who) -> None:
    """The request being served comes from a person or a node. Raises UnavailableError."""
    connection = _current.get()
    if connection is not None and connection.who == "stranger":
        connection.held.know(connection, who)


class Connection(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """uvicorn's protocol, which has a time limit for idle connections alone, with the others."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    client: tuple[str, int] | None
    cycle: Any  # of the last request whose head is here

    def __init__(self, held: Connections, **uvicorns: Any) -> None:
        super().__init__(**uvicorns)
        self.held = held
        self.who: Who = "stranger"
        self.address: str | None = None
        self._in_head = False
        self._head_bytes = 0
        self._head: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.address = self.held.client_of(self.client[0] if self.client else None)
        self._head = self.loop.call_later(HEAD_S, self.transport.abort)
        self.held.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.held.forget(self)
        for timer in (self._head, self._unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        _current.set(self)  # the task of a request starts in here, and has this context
        in_head = self._in_head
        super().data_received(data)
        self._head_bytes = self._head_bytes + len(data) if in_head and self._in_head else 0
        if self._head_bytes > HEAD_BYTES:
            self.transport.abort()
        elif not self._between_requests and self._head is not None:
            self._head.cancel()
            self._head = None
        elif self._between_requests and self._head is None:  # a head, or the rest of a body that nobody wants
            self._head = self.loop.call_later(HEAD_S, self.transport.abort)

    def on_message_begin(self) -> None:
        """Of httptools, which takes heads of any size; h11 has a limit."""
        self._in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Of httptools."""
        self._in_head = False
        super().on_headers_complete()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def shutdown(self) -> None:
        """See uvicorn's protocols: the server stops. A request whose head is on its way is still answered."""
        if not self._in_head:
            super().shutdown()
        elif self._head is not None:
            self._head.cancel()
            self._head = self.loop.call_later(LAST_HEAD_S, self.transport.abort)

    def timeout_keep_alive_handler(self) -> None:
        """Close at once: `close` would wait for a client that does not read the rest of its answer."""
        self.transport.abort()

    def refuse(self) -> None:
        """Make room."""
        if self._between_requests:
            self.transport.write(BUSY)
        self.transport.close()
        self.loop.call_later(LINGER_S, self.transport.abort)

    @property
    def _between_requests(self) -> bool:
        return self.cycle is None or self.cycle.response_complete
