"""For every request: its id, the Host check, the size limit, security headers, and the last error handler."""

import logging
import secrets
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from powermean.contracts.api import ErrorBody
from server.error_handlers import error_response

log = logging.getLogger(__name__)

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


class Gate:
    """The outermost layer of the application."""

    def __init__(
        self, app: ASGIApp, *, hosts: Sequence[str], max_body: int, max_body_of: Mapping[str, int]
    ) -> None:
        """`max_body_of` sets different limits for some paths. Sizes in bytes."""
        self._app = app
        self._hosts = frozenset(hosts)
        self._max_body = max_body
        self._max_body_of = dict(max_body_of)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_on(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                _add_headers(message, scope["path"], request_id)
            await send(message)

        headers = Headers(scope=scope)
        limit = self._max_body_of.get(scope["path"], self._max_body)
        refusal = self._refusal(headers, limit) or _nul(scope)
        if refusal is not None:
            await error_response(*refusal)(scope, receive, send_on)
            return
        try:
            await self._app(scope, _limited(receive, limit), send_on)
        except ClientDisconnect:
            log.info("request %s: the client went away: %s %s", request_id, scope["method"], scope["path"])
        except Exception:  # the boundary of the application: logged, and answered as an unexpected error
            log.exception("request %s failed: %s %s", request_id, scope["method"], scope["path"])
            if started:
                raise
            await error_response(500, _unexpected(request_id))(scope, receive, send_on)

    def _refusal(self, headers: Headers, limit: int) -> tuple[int, ErrorBody] | None:
        host = _host_name(headers.get("host", ""))
        if host not in self._hosts:
            return 400, ErrorBody(
                code="host_not_allowed",
                message=f"this server does not accept the host name {host!r}",
                remedy="Use one of its names, or add this one to POWERMEAN_ALLOWED_HOSTS.",
            )
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            return 413, ErrorBody(code="too_large", message=_too_large(limit))
        return None


def _nul(scope: Scope) -> tuple[int, ErrorBody] | None:
    """No valid path contains a NUL character, and databases refuse it."""
    if "\x00" in scope["path"] or b"%00" in scope["query_string"]:
        return 400, ErrorBody(code="bad_request", message="the address contains a NUL character")
    return None


def _host_name(header: str) -> str:
    """The name in a Host header, without port, in lower case; IPv6 addresses keep their brackets."""
    try:
        name = urlsplit(f"//{header}").hostname or ""
    except ValueError:
        return header
    return f"[{name}]" if ":" in name else name


def _limited(receive: Receive, limit: int) -> Receive:
    """Stop reading a body that is longer than allowed, whatever its headers claim."""
    got = 0

    async def receive_on() -> Message:
        nonlocal got
        message = await receive()
        if message["type"] == "http.request":
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


def _add_headers(message: Message, path: str, request_id: str) -> None:
    headers = MutableHeaders(scope=message)
    headers["X-Request-Id"] = request_id
    for name, value in _HEADERS.items():
        headers.setdefault(name, value)
    if path.startswith("/v1/"):
        headers.setdefault("Cache-Control", "no-store")
