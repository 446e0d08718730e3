"""The request log: one line per request; all log lines of a request have its id."""

import json
import logging
import time
from collections import Counter
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from prometheus_client import Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class RequestLog:
    """Counts, times and logs every request by its route, because paths may contain sign-in codes."""

    def __init__(self, app: ASGIApp, seconds: Histogram) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        token = request_id.set(scope.get("state", {}).get("request_id"))

        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._note(scope, message["status"], time.perf_counter() - started)
            await send(message)

        try:
            await self._app(scope, receive, send_on)
        finally:
            request_id.reset(token)

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        method = _known(scope["method"])
        self._seconds.labels(method, route, str(status)).observe(seconds)
        log.info(
            "%s %s %d",
            method,
            route,
            status,
            extra={"status": status, "ms": round(seconds * 1000, 1)},
        )


class JsonFormatter(logging.Formatter):
    """One JSON object per line, with the id of the request being served."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
        line |= {name: record.__dict__[name] for name in ("status", "ms") if name in record.__dict__}
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)  # ASCII: no value of a caller begins a line or moves a terminal's cursor


class Sparing(logging.Filter):
    """Lets through a few warnings of a kind in a minute; the next one says how many it stands for.

    A kind is a logger and a message before its values are put in.
    """

    def __init__(self, most: int = 5, window_s: float = 60.0) -> None:
        super().__init__()
        self._most = most
        self._window_s = window_s
        self._ends_at = float("-inf")
        self._seen: Counter[tuple[str, str]] = Counter()  # in this window
        self._left_out: Counter[tuple[str, str]] = Counter()  # in the one before

    def filter(self, record: logging.LogRecord) -> bool:
        """See logging.Filter."""
        if record.levelno < logging.WARNING:
            return True
        if (now := time.monotonic()) >= self._ends_at:
            self._left_out = Counter(
                {kind: n - self._most for kind, n in self._seen.items() if n > self._most}
            )
            self._seen.clear()
            self._ends_at = now + self._window_s
        kind = (record.name, str(record.msg))
        self._seen[kind] += 1
        if left_out := self._left_out.pop(kind, 0):
            record.msg, record.args = f"{record.getMessage()} ({left_out} more like it were left out)", ()
        return self._seen[kind] <= self._most


_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def _known(method: str) -> str:
    """The method as a label: callers may invent any, and each would be a time series for ever."""
    return method if method in _METHODS else "other"


def configure_logging() -> None:
    """Send this process's log to stderr as JSON lines."""
    handler = logging.StreamHandler()
    handler.addFilter(Sparing())
    handler.setFormatter(JsonFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
