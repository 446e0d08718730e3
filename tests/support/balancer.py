"""A load balancer as in front of several servers: new connections go to those whose /readyz says 200."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

import httpx

from tests.support.proxy import Proxy

CHECK_S = 0.2  # between looks at each server
ANSWER_S = 1.0


class Balancer(Proxy):
    """Passes bytes on, so a connection stays with its server until one of both closes it."""

    def __init__(self, ports: Sequence[int]) -> None:
        super().__init__([])
        self._over = threading.Event()
        self._watchers = [threading.Thread(target=self._watch, args=(port,), daemon=True) for port in ports]
        self._lock = threading.Lock()
        for watcher in self._watchers:
            watcher.start()

    def _watch(self, port: int) -> None:
        with httpx.Client(trust_env=False, timeout=ANSWER_S) as client:
            while not self._over.wait(CHECK_S):
                try:
                    ready = client.get(f"http://127.0.0.1:{port}/readyz").status_code == 200
                except httpx.TransportError:
                    ready = False
                with self._lock:
                    others = [one for one in self.targets if one != port]
                    self.targets = [*others, port] if ready else others

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def close(self) -> None:
        self._over.set()
        for watcher in self._watchers:
            watcher.join(10)
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
