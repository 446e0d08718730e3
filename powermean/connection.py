"""A connection to the server that runs calls one at a time; shared by all clients."""

from ipaddress import ip_address
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx

from powermean.rest import Call, ServerUnreachableError

T = TypeVar("T")
TIMEOUT = httpx.Timeout(60, connect=5)


def through_proxy(url: str) -> bool:
    """Whether the environment's proxy settings apply: never to this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return not ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


class Connection:
    """Runs calls one at a time with a bearer token."""

    def __init__(self, url: str, token: str, timeout: httpx.Timeout = TIMEOUT) -> None:
        self.url = url.rstrip("/")
        self._http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=timeout,
            trust_env=through_proxy(self.url),
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
        try:
            response = self._http.send(self._http.build_request(**call.keywords(), **extra))
        except httpx.TransportError as error:
            raise ServerUnreachableError(self.url, error) from error
        return call.parse(response)
