"""A client that is closed lets no thread wait for its answer."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Thread

import pytest

from powermean.contracts.rollout import GenerateRequest, Sampling
from rollout.client import EngineUnreachableError, RolloutClient

REQUEST = GenerateRequest(prompts=((1,),), sampling=Sampling(max_new_tokens=1))
CALLS = 3


class Silent:
    """Takes connections and requests, and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.asked = Event()  # by all
        self.hung_up: list[bytes] = []
        self._connections: list[socket.socket] = []
        self._thread = Thread(target=self._run)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def _run(self) -> None:
        for _ in range(CALLS):
            connection, _ = self._listener.accept()
            connection.settimeout(30)
            connection.recv(1)
            self._connections.append(connection)
        self.asked.set()
        for connection in self._connections:
            while connection.recv(1 << 16):
                pass
            self.hung_up.append(b"")

    def close(self) -> None:
        self._thread.join(30)
        for connection in self._connections:
            connection.close()
        self._listener.close()


@pytest.fixture
def silent() -> Iterator[Silent]:
    service = Silent()
    yield service
    service.close()


def test_close_breaks_off_the_calls_of_other_threads_and_the_service_sees_it(silent: Silent) -> None:
    client = RolloutClient(silent.url, lambda: "token")
    with ThreadPoolExecutor(CALLS) as pool:
        calls = [pool.submit(client.generate, REQUEST, 600.0) for _ in range(CALLS)]
        assert silent.asked.wait(30)
        assert not any(call.done() for call in calls)
        client.close()
        for call in calls:
            assert isinstance(call.exception(10), EngineUnreachableError)
    silent.close()
    assert len(silent.hung_up) == CALLS
    assert client._sockets == set()
    with pytest.raises(EngineUnreachableError):
        client.generate(REQUEST, 600.0)
    client.close()
