"""Whether this server can answer, and which parts of the service fail, for /readyz and /metrics."""

import asyncio
import logging
import time
from collections.abc import Callable

import redis
from anyio import to_thread
from prometheus_client import CollectorRegistry, Gauge
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.api import FieldError
from server.cluster.leadership import is_led
from server.connections import Connections
from server.db.session import Database, DatabaseMovedError
from server.settings import Settings

CHECK_TIMEOUT_S = 2.0
CHECKS_TIMEOUT_S = 5.0  # of one part, whatever it does
PATIENCE_S = 0.5  # of callers with a part that is not vital: some proxies wait no longer than a second
LEADER_WITHIN_S = 1.0
READINESS_S = 2.0  # for how long an answer holds

# Without these this server can't answer. The other parts fail for every server: a proxy that took them all
# out of service would stop heartbeats too, and running attempts would lose their leases.
VITAL = frozenset({"server", "database"})
REMEDIES = {
    "server": "Ask another server, or this one when it has restarted.",
    "database": "See that it runs, that this server reaches it, and that SQLite's file is in its place.",
    "redis": "See that it runs and that servers reach it. Until then running jobs go on and others wait.",
    "artefacts": "See that it is mounted and has room. Until then uploads and checkpoints fail.",
    "scheduler": "See that a server which may schedule runs and that clocks are right; its log says more.",
}

log = logging.getLogger(__name__)


class Parts:
    """What this server needs: each part's name and its check, which says what is wrong with it."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtefactStore,
        connections: Connections,
        registry: CollectorRegistry,
    ) -> None:
        self._connections = connections
        up = Gauge("powermean_part_up", "1 if this part works.", ["part"], registry=registry)
        checks: dict[str, Callable[[], str | None]] = {
            "database": lambda: _check_database(database),
            "redis": lambda: _check_redis(settings.redis_url),
            "artefacts": lambda: _check_store(store),
            "scheduler": lambda: _check_scheduler(database, settings),
        }
        self._parts = tuple(_Part(name, check, up) for name, check in checks.items())

    async def wrong(self) -> tuple[FieldError, ...]:
        """What is wrong with which part; or that this server is about to stop.

        Checked at most every 2 s, once for all who ask, within a time limit: callers need no key, and those
        who wait hold no thread.
        """
        if self._connections.draining:
            return (_wrong("server", "is about to stop"),)
        found = await asyncio.gather(*(part.wrong() for part in self._parts))
        return tuple(
            _wrong(part.name, why) for part, why in zip(self._parts, found, strict=True) if why is not None
        )


def _wrong(part: str, why: str) -> FieldError:
    return FieldError(path=part, message=why, remedy=REMEDIES[part])


class _Part:
    """A part, and what its newest check found."""

    def __init__(self, name: str, check: Callable[[], str | None], up: Gauge) -> None:
        self.name = name
        self._check = check
        self._up = up
        self._found: str | None = "has not answered yet"
        self._checked_at = float("-inf")
        self._checking: asyncio.Task[None] | None = None
        self._asked = False  # a check that hangs keeps its one thread, and gets no second

    async def wrong(self) -> str | None:
        """What is wrong with it; by the check before if the new one takes longer than callers can wait."""
        if self._checking is None or (
            self._checking.done() and time.monotonic() - self._checked_at > READINESS_S
        ):
            self._checking = asyncio.create_task(self._look())
        await asyncio.wait({self._checking}, timeout=None if self.name in VITAL else PATIENCE_S)
        return self._found

    async def _look(self) -> None:
        try:
            async with asyncio.timeout(CHECKS_TIMEOUT_S):
                self._found = await self._ask()
        except TimeoutError:
            log.warning("%s does not answer within %g s", self.name, CHECKS_TIMEOUT_S)
            self._found = "does not answer"
        except Exception:  # of a library: no reason to answer nothing about the other parts
            log.exception("the check of %s failed", self.name)
            self._found = "can't be checked"
        self._checked_at = time.monotonic()
        self._up.labels(self.name).set(self._found is None)

    async def _ask(self) -> str | None:
        if self._asked:
            return "does not answer"
        self._asked = True

        def ask() -> str | None:
            try:
                return self._check()
            finally:
                self._asked = False

        return await to_thread.run_sync(ask, abandon_on_cancel=True)


def _check_database(database: Database) -> str | None:
    try:
        database.verify()
    except SQLAlchemyError:
        log.exception("the database does not answer")
        return "does not answer"
    except DatabaseMovedError as error:
        log.error("%s", error)
        return "its file was moved or replaced"
    return None


def _check_redis(url: str) -> str | None:
    client = redis.Redis.from_url(url, socket_connect_timeout=CHECK_TIMEOUT_S, socket_timeout=CHECK_TIMEOUT_S)
    try:
        client.ping()
    except (RedisError, OSError) as error:
        log.warning("redis does not answer: %s", error)
        return "does not answer"
    finally:
        client.close()
    return None


def _check_scheduler(database: Database, settings: Settings) -> str | None:
    """A server that has just started takes a moment until it leads."""
    if not settings.scheduler:
        return None
    deadline = time.monotonic() + LEADER_WITHIN_S
    while not _is_led(database, settings):
        if time.monotonic() > deadline:
            return "has no leader: nothing is scheduled"
        time.sleep(0.05)
    return None


def _is_led(database: Database, settings: Settings) -> bool:
    try:
        with database.read() as session:
            return is_led(session, settings.leader_lease_s)
    except SQLAlchemyError:
        return True  # the database's check says what is wrong


def _check_store(store: ArtefactStore) -> str | None:
    try:
        store.probe()
    except ArtefactError as error:
        log.warning("the artefact store fails its probe: %s", error)
        return f"can't be written ({error.code})"
    return None
