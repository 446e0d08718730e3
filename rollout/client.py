"""The trainer's side of the rollout service. Imports no torch and no engine."""

import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Lock
from types import TracebackType
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from powermean.contracts.api import ErrorResponse
from powermean.contracts.rollout import (
    ChannelRequest,
    EngineState,
    GenerateRequest,
    GenerateResponse,
    HoldRequest,
    PublishRequest,
)
from powermean.errors import PowermeanError

CONNECT_TIMEOUT_S = 10.0
CONTROL_TIMEOUT_S = 60.0  # for health and for dropping an adapter; completions in progress are finished first
_WORTH_ANOTHER_TRY = frozenset({401, 429, 499})

Message = TypeVar("Message", bound=BaseModel)


class RolloutError(PowermeanError):
    """The rollout service did not do what was asked."""


class EngineUnreachableError(RolloutError):
    """No answer, or the connection broke during a request."""

    code = "engine_unreachable"
    retryable = True

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"the rollout service at {url} is gone: {reason}")


class EngineTimeoutError(RolloutError):
    """No answer in time."""

    code = "engine_timeout"
    remedy = "see the attempt's log; lower rollout.max_new_tokens or training.prompts_per_step"
    retryable = True

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(f"the rollout service did not answer {what} within {timeout_s:g} s")


class EngineRefusedError(RolloutError):
    """The service refused. `status` is the HTTP status."""

    def __init__(self, status: int, code: str, message: str, remedy: str | None = None) -> None:
        retryable = status >= 500 or status in _WORTH_ANOTHER_TRY
        super().__init__(message, code=code, remedy=remedy, retryable=retryable)
        self.status = status


class RolloutClient:
    """One rollout service. `token` returns the attempt's current token, which changes with every heartbeat.

    Every call raises EngineUnreachableError, EngineTimeoutError or EngineRefusedError, which are all
    RolloutErrors. Calls may come from several threads at once; each has its own connection.
    """

    def __init__(self, url: str, token: Callable[[], str]) -> None:
        self._url = url
        self._token = token
        # The server may close an idle connection just as it is used again: not an error.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(base_url=url, trust_env=False, limits=limits)
        self._sockets: set[socket.socket] = set()  # of calls in flight
        self._lock = Lock()  # of these
        self._closed = False

    def __enter__(self) -> "RolloutClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Abort calls in flight in all threads; these and later ones raise EngineUnreachableError."""
        with self._lock:
            self._closed = True
            for one in self._sockets:
                _hang_up(one)
        self._http.close()

    def generate(self, request: GenerateRequest, timeout_s: float) -> GenerateResponse:
        """Complete prompts."""
        content = self._call("POST", "/v1/generate", timeout_s, request)
        return _parsed(GenerateResponse, content)

    def publish(self, request: PublishRequest, timeout_s: float) -> EngineState:
        """Send new weights; they are in use when this returns."""
        return _parsed(EngineState, self._call("POST", "/v1/publish", timeout_s, request))

    def hold(self, request: HoldRequest, timeout_s: float) -> EngineState:
        """Have nothing completed from when this returns until the next publish."""
        return _parsed(EngineState, self._call("POST", "/v1/hold", timeout_s, request))

    def drop_adapter(self, timeout_s: float = CONTROL_TIMEOUT_S) -> EngineState:
        """Drop the job's adapter and free its slot."""
        return _parsed(EngineState, self._call("DELETE", "/v1/adapter", timeout_s))

    def open_channel(self, request: ChannelRequest, timeout_s: float) -> EngineState:
        """Make the engine connect to us; when this returns, both sides are connected."""
        return _parsed(EngineState, self._call("POST", "/v1/channel", timeout_s, request))

    def health(self, timeout_s: float = CONTROL_TIMEOUT_S) -> EngineState:
        """The state of a ready engine. Raises EngineRefusedError (503) while it is not ready."""
        return _parsed(EngineState, self._call("GET", "/health", timeout_s))

    def _call(self, method: str, path: str, timeout_s: float, body: BaseModel | None = None) -> bytes:
        """The answer's body. It arrives in one piece, so the deadline for the first byte covers all of it."""
        headers = {"Authorization": f"Bearer {self._token()}", "Content-Type": "application/json"}
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        content = body.model_dump_json() if body is not None else None
        try:
            with self._breakable() as extensions:
                response = self._http.request(
                    method, path, content=content, headers=headers, timeout=timeout, extensions=extensions
                )
        except httpx.ConnectTimeout as error:
            raise EngineUnreachableError(self._url, "no connection") from error
        except httpx.TimeoutException as error:
            raise EngineTimeoutError(f"{method} {path}", timeout_s) from error
        except httpx.TransportError as error:
            raise EngineUnreachableError(self._url, str(error) or type(error).__name__) from error
        if not response.is_success:
            raise _refusal(response)
        return response.content

    @contextmanager
    def _breakable(self) -> Iterator[dict[str, Any]]:
        """Request extensions that let `close` find the connection of a call.

        A thread that waits for an answer is woken by shutting down its connection, not by closing the file.
        """
        own: list[socket.socket] = []

        def trace(event: str, info: dict[str, Any]) -> None:
            if event != "connection.connect_tcp.complete":
                return
            connected: socket.socket = info["return_value"].get_extra_info("socket")
            own.append(connected)
            with self._lock:
                self._sockets.add(connected)
                if self._closed:
                    _hang_up(connected)

        if self._closed:
            raise EngineUnreachableError(self._url, "the client was closed")
        try:
            yield {"trace": trace}
        finally:
            with self._lock:
                self._sockets.difference_update(own)


def _hang_up(one: socket.socket) -> None:
    with suppress(OSError):  # the other side was faster
        one.shutdown(socket.SHUT_RDWR)


def _parsed(kind: type[Message], content: bytes) -> Message:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise EngineRefusedError(
            502, "engine_answer", f"the rollout service's answer can't be read: {error}"
        ) from error


def _refusal(response: httpx.Response) -> EngineRefusedError:
    try:
        error = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        return EngineRefusedError(response.status_code, "engine_error", f"HTTP {response.status_code}")
    return EngineRefusedError(response.status_code, error.code, error.message, error.remedy)
