"""Connections to the server that run calls one by one, and how a call becomes a client's method."""

import asyncio
import inspect
import ssl
import time
from collections.abc import Callable, Coroutine, Mapping
from functools import cache, update_wrapper
from ipaddress import ip_address
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar, get_args
from urllib.parse import urlsplit

import httpx

from powermean.calls import Call, ServerUnreachableError
from powermean.errors import PowermeanError
from powermean.keys import clean_key

P = ParamSpec("P")
T = TypeVar("T")
TIMEOUT = httpx.Timeout(60, connect=5)


# A connection that broke off: a server that was restarted, behind whose proxy others go on. A connection that
# can't be made at all is told at once.
LOST = (httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError)
RETRIES_S = (0.0, 0.5)  # pauses before a repetition; a connection that was idle for long is gone at once


class BadAddressError(PowermeanError):
    """The server's address is no URL."""

    code = "bad_address"


def address(url: str) -> str:
    """The server's address without white space and slashes around it. Raises BadAddressError for no URL."""
    given = url.strip().rstrip("/")
    try:
        parsed = httpx.URL(given)
    except httpx.InvalidURL as error:
        raise BadAddressError(f"{given!r} is not the address of a server: {error}") from error
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise BadAddressError(f"{given!r} is not the address of a server, such as http://127.0.0.1:8700")
    return given


def through_proxy(url: str) -> bool:
    """Whether the environment's proxy settings apply: never to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


@cache
def certificates(trust_env: bool) -> ssl.SSLContext:
    """What servers are trusted by. A process reads it once, which takes as long as many requests."""
    return httpx.create_ssl_context(trust_env=trust_env)


def pauses(call: Call[Any]) -> tuple[float | None, ...]:
    """For each try, how long to wait after it if the connection is lost; None: it was the last one."""
    return (*RETRIES_S, None) if call.repeatable else (None,)


class Connection:
    """Runs calls one at a time, with a bearer token, or as a stranger where there is none yet."""

    def __init__(self, url: str, token: str | None, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = address(url)
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {clean_key(token, 'the key')}"} if token else {},
            timeout=timeout,
            trust_env=through_proxy(self.url),
            verify=certificates(through_proxy(self.url)),
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def _run(self, call: Call[T], **extra: Any) -> T:
        for pause_s in pauses(call):
            try:
                return call.parse(self._http.send(self._http.build_request(**call.keywords(), **extra)))
            except LOST as error:
                if pause_s is None:
                    raise ServerUnreachableError(self.url, error) from error
                time.sleep(pause_s)
            except httpx.TransportError as error:
                raise ServerUnreachableError(self.url, error) from error
        raise AssertionError("the last try returns or raises")


class AsyncConnection:
    """Runs calls one by one, authorised by a key or by a browser session's cookies."""

    def __init__(
        self,
        url: str,
        key: str | None = None,
        cookies: Mapping[str, str] | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.url = address(url)
        headers = {"Authorization": f"Bearer {clean_key(key, 'the key')}"} if key else {}
        if transport is not None:
            headers["Accept-Encoding"] = "identity"  # within a process there is no wire to save
        if cookies:
            headers["Origin"] = self.url  # the server wants it of whoever comes with a cookie
        self._http = httpx.AsyncClient(
            base_url=self.url,
            headers=headers,
            cookies=dict(cookies or {}),
            transport=transport,
            timeout=TIMEOUT,
            trust_env=through_proxy(self.url),
            verify=certificates(through_proxy(self.url)) if transport is None else True,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def _run(self, call: Call[T]) -> T:
        for pause_s in pauses(call):
            try:
                return call.parse(await self._http.send(self._http.build_request(**call.keywords())))
            except LOST as error:
                if pause_s is None:
                    raise ServerUnreachableError(self.url, error) from error
                await asyncio.sleep(pause_s)
            except httpx.TransportError as error:
                raise ServerUnreachableError(self.url, error) from error
        raise AssertionError("the last try returns or raises")


def method(build: Callable[P, Call[T]]) -> Callable[Concatenate[Connection, P], T]:
    """The method that runs the call: `get_job = method(rest.get_job)`."""

    def run(self: Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._run(build(*args, **kwargs))

    _describe(run, build)
    return run


def async_method(
    build: Callable[P, Call[T]],
) -> Callable[Concatenate[AsyncConnection, P], Coroutine[Any, Any, T]]:
    """As `method`, for an asynchronous client."""

    async def run(self: AsyncConnection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._run(build(*args, **kwargs))

    _describe(run, build)
    return run


def _describe(run: Callable[..., Any], build: Callable[..., Any]) -> None:
    """Let help() show what type checkers know: the call's own parameters, and its answer as the result."""
    update_wrapper(run, build)
    made = inspect.signature(build)
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    (result,) = get_args(made.return_annotation)
    signature = made.replace(parameters=[own, *made.parameters.values()], return_annotation=result)
    run.__signature__ = signature  # type: ignore[attr-defined]
