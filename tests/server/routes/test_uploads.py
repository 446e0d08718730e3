"""Uploads that are slow or break off hold no thread and leave no file."""

import os
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from server import middleware
from server.routes import uploads
from tests.support.live_server import listening
from tests.support.service_driver import ADMIN_KEY, ServiceDriver, error_of

ROW = b'{"question": "1+1", "answer": "2"}\n'
PART = 64 * 1024


@pytest.fixture
def kind() -> str:
    """Uploads are received before any database is asked."""
    return "sqlite"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files are made."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def head(kind: str, length: int) -> bytes:
    return (
        f"POST /v1/datasets HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {ADMIN_KEY}\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


BODIES = {
    "application/x-ndjson": ROW * (PART // len(ROW)),
    "multipart/form-data; boundary=x": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"'
    + b"\r\n\r\n"
    + ROW * (3 * 2**20 // len(ROW)),  # beyond what is kept in memory
}


@contextmanager
def begun(url: str, kind: str) -> Iterator[socket.socket]:
    """An upload that has sent all but its end."""
    body = BODIES[kind]
    address = httpx.URL(url)
    with socket.create_connection((address.host, address.port or 0), timeout=10) as sender:
        sender.sendall(head(kind, len(body) + 1000) + body)
        yield sender


def open_temporaries(folder: Path) -> set[str]:
    """The files below the folder that this process has open, named or not."""
    found = set()
    for one in Path("/proc/self/fd").iterdir():
        try:
            target = os.readlink(one)
        except FileNotFoundError:
            continue
        if target.startswith(str(folder)):
            found.add(target)
    return found


def eventually(holds, timeout_s: float = 10.0) -> None:
    until = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.parametrize("kind_of_body", BODIES)
def test_an_upload_that_breaks_off_leaves_nothing(service: ServiceDriver, scratch: Path, kind_of_body: str):
    with listening(service.app) as url:
        with begun(url, kind_of_body):
            eventually(lambda: open_temporaries(scratch))
            assert list(scratch.iterdir()) == []  # even kill -9 would leave nothing
        eventually(lambda: not open_temporaries(scratch))
    assert service.person.get("/v1/datasets").json()["items"] == []


@pytest.mark.slow
def test_an_upload_below_the_slowest_rate_is_given_up(
    service: ServiceDriver, scratch: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(middleware, "BODY_S", 0.2)
    monkeypatch.setattr(middleware, "SLOWEST", 2**30)
    with listening(service.app) as url, begun(url, "application/x-ndjson") as sender:
        said = sender.recv(4000)
        assert said.startswith(b"HTTP/1.1 408")
        assert b"slower than" in said
        eventually(lambda: not open_temporaries(scratch))


@pytest.mark.slow
def test_slow_uploads_hold_no_thread(service: ServiceDriver, scratch: Path, monkeypatch: pytest.MonkeyPatch):
    """There are more of them than the 40 threads for requests, and others are answered meanwhile."""
    monkeypatch.setattr(uploads, "MOST_AT_ONCE", 100)
    headers = {"Authorization": f"Bearer {ADMIN_KEY}"}
    with listening(service.app) as url, _all_begun(url, "application/x-ndjson", 60):
        eventually(lambda: len(open_temporaries(scratch)) == 60)
        with httpx.Client(base_url=url, headers=headers, trust_env=False) as client:
            assert client.get("/v1/datasets", timeout=5).status_code == 200


def test_a_person_has_so_many_uploads_at_once(service: ServiceDriver, scratch: Path):
    other = service.someone()
    with listening(service.app) as url:
        with _all_begun(url, "application/x-ndjson", uploads.MOST_AT_ONCE):
            eventually(lambda: len(open_temporaries(scratch)) == uploads.MOST_AT_ONCE)
            refused = service.person.post("/v1/datasets", content=ROW)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, str(uploads.RETRY_S))
            assert other.post("/v1/datasets", content=ROW).status_code == 201
        eventually(lambda: not service.app.state.uploads)
    assert service.person.post("/v1/datasets", content=ROW).status_code == 201


@contextmanager
def _all_begun(url: str, kind: str, number: int) -> Iterator[None]:
    if number == 0:
        yield
        return
    with begun(url, kind), _all_begun(url, kind, number - 1):
        yield


@pytest.mark.slow
def test_a_whole_upload_is_stored(service: ServiceDriver, scratch: Path):
    with listening(service.app) as url:
        for kind in BODIES:
            body = BODIES[kind] + (b"\r\n--x--\r\n" if kind.startswith("multipart") else b"")
            answer = httpx.post(
                f"{url}/v1/datasets",
                content=body,
                headers={"Authorization": f"Bearer {ADMIN_KEY}", "Content-Type": kind},
                trust_env=False,
                timeout=30,
            )
            assert answer.status_code == 201, answer.text
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "identity, gzip", "zstd"])
@pytest.mark.parametrize("path", ["/v1/datasets", "/v1/jobs", "/v1/attempts/x/metrics", "/login"])
def test_a_packed_body_is_refused_before_it_is_read(service: ServiceDriver, path: str, encoding: str):
    answer = service.person.post(path, content=b"x" * 100, headers={"Content-Encoding": encoding})
    assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_encoding")


def test_a_body_that_says_it_is_not_packed_is_taken(service: ServiceDriver):
    answer = service.person.post("/v1/datasets", content=ROW, headers={"Content-Encoding": "identity"})
    assert answer.status_code == 201
