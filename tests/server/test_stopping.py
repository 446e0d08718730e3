"""A server that is told to stop: it says so, lets go of its clients, and answers what has begun.

tests/integration/test_several_servers.py restarts whole processes under load.
"""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from urllib.parse import urlsplit

import httpx
import pytest

from server import connections
from tests.support.live_server import listening
from tests.support.real_service import until
from tests.support.service_driver import ADMIN_KEY, ServiceDriver, error_of


@pytest.fixture
def kind() -> str:
    return "sqlite"


def test_while_it_drains_it_is_not_ready_and_serves_on_without_keeping_connections(service: ServiceDriver):
    assert "connection" not in service.person.get("/v1/jobs").headers
    service.app.state.connections.draining = True
    answer = service.person.get("/v1/jobs")
    assert (answer.status_code, answer.headers["connection"]) == (200, "close")
    answer = service.anyone.get("/readyz")
    assert (answer.status_code, answer.headers["connection"]) == (503, "close")
    assert [one["path"] for one in error_of(answer)["fields"]] == ["server"]
    assert service.anyone.get("/healthz").status_code == 200


@pytest.mark.slow
def test_an_upload_that_goes_on_for_too_long_is_told_to_come_again(service: ServiceDriver):
    began, over = threading.Event(), threading.Event()

    def body() -> Iterator[bytes]:
        yield b'{"a": 1}\n'
        began.set()
        while not over.wait(0.2):
            yield b'{"a": 2}\n'

    def upload(url: str) -> httpx.Response:
        headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
        return httpx.post(f"{url}/v1/datasets", content=body(), headers=headers, timeout=20, trust_env=False)

    with ThreadPoolExecutor(1) as pool:
        with listening(service.app) as url:  # which waits for a second at its end
            answer = pool.submit(upload, url)
            assert began.wait(10)
            until(lambda: service.app.state.uploads, "the upload is being received")
        over.set()
        refused = answer.result(20)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert "POWERMEAN_STOP_S" in error_of(refused)["remedy"]
    assert not service.app.state.uploads


@pytest.mark.slow
def test_a_request_whose_head_is_on_its_way_is_answered(service: ServiceDriver):
    with listening(service.app) as url, socket.create_connection(address(url)) as client:
        client.settimeout(10)
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n")
        held = service.app.state.connections
        until(lambda: any(one._in_head for one in held._strangers), "half of the head is there")
        held.draining = True
        for one in list(held._strangers):
            one.loop.call_soon_threadsafe(one.shutdown)  # as uvicorn does at its end
        client.sendall(b"\r\n")
        answer = client.recv(65536)
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"connection: close" in answer.lower()


@pytest.mark.slow
def test_a_head_that_does_not_end_is_not_waited_for(service: ServiceDriver, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(connections, "LAST_HEAD_S", 0.2)
    with listening(service.app) as url, socket.create_connection(address(url)) as client:
        client.settimeout(10)  # half of what a head may take
        client.sendall(b"GET /healthz HTTP/1.1\r\n")
        strangers = service.app.state.connections._strangers
        until(lambda: any(one._in_head for one in strangers), "half of the head is there")
        for one in list(strangers):
            one.loop.call_soon_threadsafe(one.shutdown)
        with suppress(ConnectionResetError):
            assert client.recv(65536) == b""


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return str(parts.hostname), int(parts.port or 0)
