"""A real server on a real socket, and readers of its event streams that can be cut."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import uvicorn
from fastapi import FastAPI

from powermean.contracts.api import Event
from powermean.sse import read_events
from server.connections import Connection


@contextmanager
def listening(app: FastAPI, deadline_s: float = 20, host: str = "127.0.0.1") -> Iterator[str]:
    """The application behind uvicorn in a thread; its address."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.bind((host, 0))
    listener.listen(256)
    protocol = partial(Connection, app.state.connections)
    config = uvicorn.Config(app, http=protocol, log_level="warning", timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        ends = time.monotonic() + deadline_s
        while not server.started:
            assert time.monotonic() < ends, "the server did not start"
            time.sleep(0.01)
        yield f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    finally:
        app.state.events.end_streams()
        server.should_exit = True
        thread.join(deadline_s)


@contextmanager
def stream(url: str, job_id: str, key: str, **headers: str) -> Iterator[httpx.Response]:
    """An open event stream."""
    with (
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=10) as client,
        client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as response,
    ):
        yield response


def read(response: httpx.Response, upto: int) -> list[Event]:
    """Events up to the number `upto`, or to the end of the stream."""
    found = []
    for event in read_events(response.iter_lines()):
        found.append(event)
        if event.seq >= upto:
            break
    return found
