"""What `powermean doctor` looks at on servers and nodes alike.

Each look has a deadline, and raises nothing.
"""

import errno
import os
import platform
import resource
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryFile
from typing import TypeVar
from urllib.parse import urlsplit

import redis
from redis.exceptions import AuthenticationError, RedisError

from powermean.artefacts import MARKER, ArtefactError, ArtefactStore
from powermean.contracts.checks import Check
from powermean.disk import SCARCE_BYTES, free_bytes, is_full
from powermean.errors import PowermeanError
from powermean.keys import without_logins
from powermean.sizes import size
from powermean.tokens import CLOCK_SKEW_S

T = TypeVar("T")
LOOK_S = 30.0
ANSWER_S = 5.0
ROOMY_BYTES = 10 * 2**30
FEW_INODES = 10_000
SHARED_BYTES = 2**30
CLOCK_S = 2.0  # of difference that is worth a word
CERTIFICATE_DAYS = 21
OLDEST_PYTHON = (3, 11)
OLDEST_REDIS = (6, 2)
Look = Callable[[], Iterable[Check]]


def tell(of: str, looks: Iterable[tuple[str, Look]], as_json: bool, slow: Mapping[str, float]) -> int:
    """Print each check once it is known: as one JSON object, or for people. 1 if anything failed."""
    code = 0
    for check in run(looks, slow):
        print(check.model_dump_json() if as_json else line(of, check), flush=True)
        code |= check.verdict == "failed"
    return code


def run(looks: Iterable[tuple[str, Look]], slow: Mapping[str, float] | None = None) -> Iterator[Check]:
    """Everything that the looks find, as they find it. A look that fails itself, or is silent for LOOK_S
    (`slow`: seconds of those that may be longer), is a failed check of that name.
    """
    for name, look in looks:
        within_s = (slow or {}).get(name, LOOK_S)
        try:
            yield from within(within_s, partial(_found, name, look))
        except TimeoutError:
            yield failed(name, f"no answer within {within_s:g} s", "Does a disk or a network mount hang?")


def _found(name: str, look: Look) -> Iterator[Check]:
    try:
        yield from look()
    except Exception as error:  # noqa: BLE001  # a doctor tells what it finds, and goes on
        remedy = error.remedy if isinstance(error, PowermeanError) else None
        yield failed(name, without_logins(f"{type(error).__name__}: {error}"), remedy)


def within(seconds: float, work: Callable[[], Iterable[T]]) -> Iterator[T]:
    """What the work yields, as it does. Raises TimeoutError where it takes longer for one of them.

    What hangs in a network mount can't be interrupted: it stays behind, in a thread that keeps no process.
    """
    given: SimpleQueue[tuple[T] | None] = SimpleQueue()

    def do() -> None:
        try:
            for one in work():
                given.put((one,))
        finally:
            given.put(None)

    threading.Thread(target=do, daemon=True).start()
    while True:
        try:
            got = given.get(timeout=seconds)
        except Empty:
            raise TimeoutError from None
        if got is None:
            return
        yield got[0]


def ok(name: str, said: str) -> Check:
    return Check(name=name, verdict="ok", said=said)


def warning(name: str, said: str, remedy: str | None = None) -> Check:
    return Check(name=name, verdict="warning", said=said, remedy=remedy)


def failed(name: str, said: str, remedy: str | None = None) -> Check:
    return Check(name=name, verdict="failed", said=said, remedy=remedy)


def line(of: str, check: Check) -> str:
    """A check of the server or the node, for people."""
    remedy = f" -> {check.remedy}" if check.remedy else ""
    return f"{of:7} {check.verdict:8} {check.name}: {check.said}{remedy}"


def python() -> Iterator[Check]:
    """Whether this Python can run powermean."""
    found = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        yield failed("python", found, "Use Python 3.11 or newer.")
    else:
        yield ok("python", f"{found} in {sys.prefix}")


def packages(names: Iterable[str]) -> Iterator[Check]:
    """Whether these distributions are installed."""
    missing, found = [], []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    if missing:
        yield failed("packages", f"missing: {', '.join(missing)}", "Install them: make install.")
    else:
        yield ok("packages", ", ".join(found))


def disk(name: str, folder: Path) -> Iterator[Check]:
    """Whether a folder can be written, or made, and its disk has room and inodes."""
    try:
        there = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
        with TemporaryFile(dir=there) as file:
            file.write(b"x")
            file.flush()
    except OSError as error:
        remedy = "Make room." if is_full(error) else f"Make {folder} writable for this user."
        yield failed(name, f"{folder} can't be written: {error.strerror}", remedy)
        return
    free, room = free_bytes(there), os.statvfs(there)
    said = f"{size(free)} free in {folder}"
    if free < SCARCE_BYTES:
        yield failed(name, f"only {said}", "Make room: below 128 MiB nothing new is started.")
    elif room.f_files and room.f_favail < FEW_INODES:
        yield failed(name, f"only {room.f_favail} inodes are free in {folder}", "Delete small files there.")
    elif free < ROOMY_BYTES:
        yield warning(name, f"only {said}", "Make room: a checkpoint may take several GiB.")
    else:
        yield ok(name, said)


def shared_memory() -> Iterator[Check]:
    """Whether /dev/shm holds weights on their way to an engine."""
    try:
        room = os.statvfs("/dev/shm")  # noqa: S108  # looked at, not used
    except OSError as error:
        yield failed("shared memory", str(error), "Mount a tmpfs at /dev/shm.")
        return
    whole, free = room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize
    said = f"{size(free)} of {size(whole)} free in /dev/shm"
    if free < SHARED_BYTES:
        yield warning("shared memory", said, "Weights pass through it: docker --shm-size=4g, or empty it.")
    else:
        yield ok("shared memory", said)


def open_files(needed: int) -> Iterator[Check]:
    """Whether the hard limit allows so many open files: the soft one is raised to it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        yield failed(
            "open files", f"{hard} may be open, {needed} are needed", "Raise ulimit -Hn, LimitNOFILE=."
        )
    else:
        yield ok(
            "open files", "any number may be open" if hard == resource.RLIM_INFINITY else f"{hard} may be"
        )


def redis_server(url: str) -> Iterator[Check]:
    """Whether Redis answers, lets us in, and forgets no message."""
    where = _host_of(url)
    remedy = f"Start Redis at {where}, or set POWERMEAN_REDIS_URL."
    try:
        with redis.Redis.from_url(url, socket_timeout=ANSWER_S, socket_connect_timeout=ANSWER_S) as client:
            info = client.info()
    except AuthenticationError:
        yield failed("redis", f"{where} refuses the password", "Correct POWERMEAN_REDIS_URL.")
        return
    except (RedisError, OSError) as error:
        yield failed("redis", f"no answer from {where}: {_short(error)}", remedy)
        return
    except ValueError as error:
        remedy = "Write redis://:PASSWORD@HOST:6379/0."
        yield failed("redis", f"POWERMEAN_REDIS_URL is no address: {error}", remedy)
        return
    said = f"{info.get('server_name', 'redis')} {info['redis_version']} at {where}"
    policy = info.get("maxmemory_policy", "noeviction")
    if tuple(int(part) for part in str(info["redis_version"]).split(".")[:2]) < OLDEST_REDIS:
        yield warning("redis", f"{said} is old", "Upgrade it to 6.2 or newer.")
    elif int(info.get("maxmemory", 0)) and policy != "noeviction":
        yield warning("redis", f"{said} may drop messages ({policy})", "Set maxmemory-policy noeviction.")
    else:
        yield ok("redis", said)


def artefact_store(url: str, *, existing: bool) -> Iterator[Check]:
    """Whether an object can be written, read and removed; `existing`: in a store that a server has made.

    Makes no store: a folder without its marker may be one whose disk is not mounted.
    """
    try:
        store = ArtefactStore(url, existing=True)
        if store.folder is not None and not existing and not (store.folder / MARKER).exists():
            yield from disk("artefact store", store.folder)
            if store.folder.is_dir():
                said = f"{store.folder} has no {MARKER}: it is new, or its disk is not mounted"
                yield warning("artefact store", said, "Mount its disk. A new server needs nothing done.")
            return
        store.probe()
    except ArtefactError as error:
        yield failed("artefact store", without_logins(f"{url}: {error}"), error.remedy)
    else:
        yield ok("artefact store", without_logins(f"{url} can be read and written"))


def clock(whose: str, theirs: datetime, asked: float) -> Iterator[Check]:
    """Whether this clock agrees with another's, which was read since `asked` (time.time())."""
    now = time.time()
    off = (asked + now) / 2 - theirs.timestamp()
    unsure = (now - asked) / 2
    said = f"{abs(off):.1f} s {'ahead of' if off > 0 else 'behind'} {whose}'s"
    remedy = "Let both keep time by NTP (chrony, systemd-timesyncd)."
    if abs(off) - unsure > CLOCK_SKEW_S:
        yield failed("clock", f"{said}: tokens are refused, and leases lapse", remedy)
    elif abs(off) - unsure > CLOCK_S:
        yield warning("clock", said, remedy)
    else:
        yield ok("clock", f"agrees with {whose}'s")


def certificate(url: str) -> Iterator[Check]:
    """Whether the certificate of an https address is valid, and for how long. Nothing for http."""
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None:
        return
    where = (parts.hostname, parts.port or 443)
    try:
        with (
            socket.create_connection(where, ANSWER_S) as plain,
            ssl.create_default_context().wrap_socket(plain, server_hostname=parts.hostname) as secure,
        ):
            ends = ssl.cert_time_to_seconds(str((secure.getpeercert() or {})["notAfter"]))
    except ssl.SSLCertVerificationError as error:
        remedy = "Renew it, or set SSL_CERT_FILE to your authority's certificate."
        yield failed("certificate", f"of {parts.hostname}: {error.verify_message}", remedy)
        return
    except OSError as error:
        yield failed("certificate", f"{parts.hostname}:{where[1]}: {_short(error)}", "Is the proxy running?")
        return
    days = (ends - time.time()) / 86_400
    said = f"of {parts.hostname} ends on {datetime.fromtimestamp(ends, UTC):%Y-%m-%d}"
    yield warning("certificate", said, "Renew it.") if days < CERTIFICATE_DAYS else ok("certificate", said)


def port_holder(host: str, port: int) -> str | None:
    """Who listens where we would; None: nobody."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return _process_at(port) if error.errno == errno.EADDRINUSE else _short(error)
    return None


def _process_at(port: int) -> str:
    """The process that listens at a port, as far as this user may see."""
    sockets = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                    sockets.add(f"socket:[{fields[9]}]")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                if os.readlink(descriptor) in sockets:
                    command = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
                    return f"process {process.name} ({' '.join(command).strip()[:80]})"
    return "a process of another user"


def _host_of(url: str) -> str:
    """Host and port of an address, without its password."""
    try:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port or 6379}" if parts.hostname else parts.path
    except ValueError:
        return "the address in POWERMEAN_REDIS_URL"


def _short(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).splitlines()[0][:200]
