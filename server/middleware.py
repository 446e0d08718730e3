"""For every request: its id, the Host check, limits of the body, security headers, the last error handler."""

import asyncio
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from powermean.contracts.api import ErrorBody
from server.connections import Connections
from server.error_handlers import error_response
from server.settings import host_name

log = logging.getLogger(__name__)

IDLE_BODY_S = 30.0  # a body of which nothing comes for so long is given up
BODY_S = 60.0  # for a body, and a second more for each SLOWEST bytes of it
SLOWEST = 8 * 1024  # bytes a second

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    # not no-referrer: browsers then send `Origin: null`, and the same-origin check of cookies needs it
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


_STOPPING = ErrorBody(
    code="unavailable",
    message="the server stops, and this took too long to be answered before; it may have been done",
    remedy="Look before you send it again. POWERMEAN_STOP_S is the time that requests have.",
)


class Gate:
    """The outermost layer of the application."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Sequence[str],
        max_body: int,
        max_body_of: Mapping[str, int],
        connections: Connections,
        public_url: str | None = None,
    ) -> None:
        """`max_body_of` sets different limits for some paths, and for all below one that ends in a slash.

        Sizes in bytes. `public_url` is the address before a proxy, whose scheme and path pages have to know.
        """
        self._app = app
        self._connections = connections
        self._hosts = frozenset(hosts)
        self._max_body = max_body
        self._max_body_of = dict(max_body_of)
        self._public = urlsplit(public_url) if public_url else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        if self._public is not None:
            scope["scheme"] = self._public.scheme
            state["public_origin"] = f"{self._public.scheme}://{self._public.netloc}".lower()
            state["root"] = self._public.path
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _add_headers(message, scope["path"], request_id, state.get("root", ""))
                if self._connections.draining:
                    MutableHeaders(scope=message)["Connection"] = "close"
            await send(message)

        headers = Headers(scope=scope)
        limit = self._limit(scope["path"])
        refusal = self._refusal(headers, limit) or _nul(scope)
        if refusal is not None:
            await error_response(*refusal)(scope, receive, send_on)
            return
        try:
            await self._app(scope, _limited(receive, limit), send_on)
        except asyncio.CancelledError:  # the server stops, and has waited for long enough
            if not started:
                await error_response(503, _STOPPING, {"Retry-After": "1"})(scope, receive, send_on)
            raise
        except ClientDisconnect:
            log.info("request %s: the client went away: %s %s", request_id, scope["method"], scope["path"])
        except Exception:  # the boundary of the application: logged, and answered as an unexpected error
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            await error_response(500, _unexpected(request_id))(scope, receive, send_on)

    def _limit(self, path: str) -> int:
        parent = path[: path.find("/", len("/v1/")) + 1]
        return self._max_body_of.get(path, self._max_body_of.get(parent, self._max_body))

    def _refusal(self, headers: Headers, limit: int) -> tuple[int, ErrorBody] | None:
        host = host_name(headers.get("host", ""))
        if host not in self._hosts:
            return 400, ErrorBody(
                code="host_not_allowed",
                message=f"this server does not accept the host name {host!r}",
                remedy="Use one of its names, or add this one to POWERMEAN_ALLOWED_HOSTS.",
            )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            return 413, ErrorBody(code="too_large", message=_too_large(limit))
        if headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
            return 415, ErrorBody(
                code="unsupported_encoding",
                message="bodies are taken as they are: this server unpacks nothing",
                remedy="Send the body without Content-Encoding.",
            )
        return None


def _nul(scope: Scope) -> tuple[int, ErrorBody] | None:
    """No valid path contains a NUL character, and databases refuse it."""
    if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
        return 400, ErrorBody(code="bad_request", message="the address contains a NUL character")
    return None


def _limited(receive: Receive, limit: int) -> Receive:
    """Stop reading a body that is longer than allowed, whatever its headers claim, or too slow."""
    got, more = 0, True
    started: float | None = None  # when the application began to read

    async def receive_on() -> Message:
        nonlocal got, more, started
        started = started or time.monotonic()
        left = started + BODY_S + got / SLOWEST - time.monotonic()
        try:
            async with asyncio.timeout(min(IDLE_BODY_S, left) if more else None):
                message = await receive()
        except TimeoutError as error:
            slow = f"it came slower than {SLOWEST} bytes a second"
            why = f"nothing of it came for {IDLE_BODY_S:g} s" if left > IDLE_BODY_S else slow
            raise HTTPException(408, f"the body did not come: {why}") from error
        if message["type"] == "http.request":
            more = message.get("more_body", False)
            got += len(message.get("body", b""))
            if got > limit:
                raise HTTPException(413, _too_large(limit))
        return message

    return receive_on


def _too_large(limit: int) -> str:
    return f"the body is above the limit of {limit} bytes"


def _unexpected(request_id: str) -> ErrorBody:
    return ErrorBody(
        code="internal",
        message=f"an unexpected error (request {request_id})",
        remedy="The server's log has more under this request id.",
    )


def _add_headers(message: Message, path: str, request_id: str, root: str) -> None:
    headers = MutableHeaders(scope=message)
    for name in ("Location", "HX-Redirect"):
        if root and headers.get(name, "").startswith("/"):
            headers[name] = root + headers[name]
    headers["X-Request-Id"] = request_id
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    if path.startswith("/v1/"):
        headers.setdefault("Cache-Control", "no-store")
