"""Clients that hold connections open are bounded, and nodes are heard all the same."""

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence

import httpx
import pytest

from server import connections, middleware
from server.connections import Connection, Connections
from server.errors import UnavailableError
from tests.support.live_server import listening, stream
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, ServiceDriver

HALF = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-A: "


@pytest.fixture
def kind() -> str:
    """Connections know no database."""
    return "sqlite"


@pytest.fixture
def crowded(settings) -> Iterator[ServiceDriver]:
    """A service with room for 40 strangers, 20 from one address."""
    few = settings.model_copy(update={"max_connections": 160, "max_connections_per_client": 20})
    driver = ServiceDriver(few)
    yield driver
    driver.close()


@contextlib.contextmanager
def opened(url: str, number: int, data: bytes = b"") -> Iterator[list[socket.socket]]:
    """Raw connections that have sent `data`."""
    host, port = httpx.URL(url).host, httpx.URL(url).port
    with contextlib.ExitStack() as stack:
        made = [
            stack.enter_context(socket.create_connection((host, port or 0), timeout=5)) for _ in range(number)
        ]
        for one in made:
            with contextlib.suppress(OSError):  # closed already
                one.sendall(data)
        yield made


def ended(sockets: Sequence[socket.socket], timeout_s: float = 5.0) -> list[bytes]:
    """What those that the server has closed by then had to say."""
    said = []
    until = time.monotonic() + timeout_s
    for one in sockets:
        one.settimeout(max(0.05, until - time.monotonic()))
        try:
            said.append(one.recv(1000))
        except ConnectionError:
            said.append(b"")
        except TimeoutError:
            continue
    return said


def client(url: str, key: str | None = None) -> httpx.Client:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, headers=headers, timeout=5, trust_env=False)


@pytest.mark.slow
def test_half_sent_requests_make_room_for_others(crowded: ServiceDriver):
    with listening(crowded.app) as url, opened(url, 60, HALF) as half:
        with client(url) as anyone:
            assert anyone.get("/healthz").status_code == 200
        with client(url, NODE_TOKEN) as node:
            report = {"hostname": "n", "version": "0"}
            assert node.put("/v1/nodes/n", json=report).status_code == 200
        said = ended(half, 2.0)
        assert 40 <= len(said) <= 42
        assert all(one.startswith(b"HTTP/1.1 503") for one in said if one)


def test_a_known_connection_makes_no_room(crowded: ServiceDriver):
    with listening(crowded.app) as url, client(url, ADMIN_KEY) as person, client(url, NODE_TOKEN) as node:
        assert person.get("/v1/jobs").status_code == 200
        assert node.put("/v1/nodes/n", json={"hostname": "n", "version": "0"}).status_code == 200
        held: Connections = crowded.app.state.connections
        with opened(url, 60, HALF):
            assert (held.count("person"), held.count("node")) == (1, 1)
            numbers = person.get("/metrics").text
            assert 'powermean_connections{who="person"} 1.0' in numbers
            assert 'powermean_connections{who="stranger"}' in numbers


@pytest.mark.slow
def test_a_person_has_so_many_connections_and_streams_count(crowded: ServiceDriver):
    job_id = crowded.submit()
    with listening(crowded.app) as url, contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(stream(url, job_id, ADMIN_KEY))
        with client(url, ADMIN_KEY) as one_more:
            answer = one_more.get("/v1/jobs")
            assert answer.status_code == 503
            assert "from your address" in answer.json()["error"]["message"]
        with client(url, NODE_TOKEN) as node:
            assert node.put("/v1/nodes/n", json={"hostname": "n", "version": "0"}).status_code == 200


def test_a_page_in_a_browser_is_a_persons(crowded: ServiceDriver):
    with listening(crowded.app) as url, client(url) as browser:
        browser.post("/v1/sessions", json={"key": ADMIN_KEY})
        assert crowded.app.state.connections.count("person") == 0
        assert browser.get("/").status_code == 200
        assert crowded.app.state.connections.count("person") == 1


@pytest.mark.slow
def test_a_head_that_does_not_come_is_given_up(crowded: ServiceDriver, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    whole = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with (
        listening(crowded.app) as url,
        opened(url, 1) as silent,
        opened(url, 1, HALF) as half,
        opened(url, 1, whole) as second,
    ):
        assert second[0].recv(1000).startswith(b"HTTP/1.1 200")
        second[0].sendall(HALF)
        started = time.monotonic()
        assert len(ended([*silent, *half, *second])) == 3
        assert time.monotonic() - started < 3


def test_a_head_without_an_end_is_given_up(crowded: ServiceDriver):
    with listening(crowded.app) as url, opened(url, 1, HALF + b"x" * 1_000_000) as endless:
        assert ended(endless)


def test_who_sends_a_large_body_reads_why_it_is_refused(crowded: ServiceDriver):
    body = b"[" * 5_000_000
    with listening(crowded.app) as url, client(url) as anyone:
        for path, status in (("/v1/jobs", 413), ("/v1/attempts/x/metrics", 401), ("/v1/jobs", 413)):
            assert anyone.post(path, content=body).status_code == status


@pytest.mark.slow
def test_a_body_that_does_not_go_on_is_given_up(crowded: ServiceDriver, monkeypatch):
    monkeypatch.setattr(middleware, "IDLE_BODY_S", 0.2)
    head = b"POST /v1/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with listening(crowded.app) as url, opened(url, 1, head + b"Content-Length: 50\r\n\r\n{") as idle:
        (said,) = ended(idle)
        assert said.startswith(b"HTTP/1.1 408")


@pytest.mark.slow
def test_an_answer_that_is_not_read_is_given_up(crowded: ServiceDriver, monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_S", 0.2)
    get = b"GET /static/vendor/echarts.js HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with listening(crowded.app) as url, opened(url, 1) as (unread,):
        unread.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        unread.sendall(get * 20)
        assert unread.recv(10)
        held: Connections = crowded.app.state.connections
        until = time.monotonic() + 10
        while held.count("stranger"):
            assert time.monotonic() < until, "the connection is still there"
            time.sleep(0.02)


@pytest.mark.parametrize(
    ("ip", "client"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8::1:2", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("10.0.0.9", None),
        (None, None),
    ],
)
def test_whom_a_connection_counts_for(ip, client):
    assert Connections(100, 10, ["10.0.0.0/24"]).client_of(ip) == client


def test_all_people_together_leave_a_half():
    held = Connections(100, 100)
    made = [Connection.__new__(Connection) for _ in range(51)]
    for number, one in enumerate(made):
        one.who, one.address = "stranger", f"192.0.2.{number}"
        held.admit(one)
        if number < 50:
            held.know(one, "person")
    with pytest.raises(UnavailableError, match=r"are open$"):
        held.know(made[-1], "person")
    held.know(made[-1], "node")
    for one in made:
        held.forget(one)
    assert not any(held.count(who) for who in ("stranger", "person", "node"))
