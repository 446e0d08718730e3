"""A server process's metrics and readiness checks, for /metrics and /readyz."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import get_args

import redis
from anyio import to_thread
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.api import FieldError
from server.cluster.leadership import is_led
from server.connections import Connections, Who
from server.db.session import Database, DatabaseMovedError
from server.gauges import ClusterGauges
from server.metrics.stream import EventHub
from server.settings import Settings

CHECK_TIMEOUT_S = 2.0
CHECKS_TIMEOUT_S = 5.0  # of one part, whatever it does
LEADER_WITHIN_S = 1.0
READINESS_S = 2.0  # for how long an answer holds

log = logging.getLogger(__name__)


class Observatory:
    """One server process's metrics and readiness checks."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        store: ArtefactStore,
        events: EventHub,
        connections: Connections,
        me: str,
    ) -> None:
        """`me`: this server's id, also as a leader."""
        self.registry = CollectorRegistry()
        self.ingested = Counter(
            "powermean_ingested_rows", "Rows reported by attempts.", ["kind"], registry=self.registry
        )
        self.requests = Histogram(
            "powermean_request_seconds",
            "Time to the first byte of the answer.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._connections = connections
        self.registry.register(ClusterGauges(database, settings, me))
        self.registry.register(_Process(events, connections))
        self._checks: dict[str, Callable[[], str | None]] = {
            "database": lambda: _check_database(database),
            "redis": lambda: _check_redis(settings.redis_url),
            "artefacts": lambda: _check_store(store),
            "scheduler": lambda: _check_scheduler(database, settings),
        }
        self._asked: set[str] = set()  # parts that still owe an answer
        self._check: asyncio.Task[tuple[FieldError, ...]] | None = None
        self._checked_at = float("-inf")

    async def wrong(self) -> tuple[FieldError, ...]:
        """Problems of each part that the server needs, or that it is about to stop.

        Checked at most every 2 s, once for all who ask, within a time limit: callers need no key, and those
        who wait hold no thread.
        """
        if self._connections.draining:
            return (FieldError(path="server", message="is about to stop"),)
        if self._check is None or (self._check.done() and time.monotonic() - self._checked_at > READINESS_S):
            self._check = asyncio.create_task(self._ask_all())
        return await asyncio.shield(self._check)

    async def _ask_all(self) -> tuple[FieldError, ...]:
        found = await asyncio.gather(*(self._ask(part, check) for part, check in self._checks.items()))
        self._checked_at = time.monotonic()
        return tuple(
            FieldError(path=part, message=why) for part, why in zip(self._checks, found, strict=True) if why
        )

    async def _ask(self, part: str, check: Callable[[], str | None]) -> str | None:
        """What is wrong with the part; a check that hangs keeps its one thread, and gets no second."""
        if part in self._asked:
            return "does not answer"
        self._asked.add(part)

        def ask() -> str | None:
            try:
                return check()
            finally:
                self._asked.discard(part)

        try:
            async with asyncio.timeout(CHECKS_TIMEOUT_S):
                return await to_thread.run_sync(ask, abandon_on_cancel=True)
        except TimeoutError:
            log.warning("%s does not answer within %g s", part, CHECKS_TIMEOUT_S)
            return "does not answer"


class _Process(Collector):
    """Gauges of this server process."""

    def __init__(self, events: EventHub, connections: Connections) -> None:
        self._events = events
        self._connections = connections

    def collect(self) -> Iterator[GaugeMetricFamily]:
        held = GaugeMetricFamily("powermean_connections", "Open connections.", labels=["who"])
        for who in get_args(Who):
            held.add_metric([who], self._connections.count(who))
        yield held
        yield GaugeMetricFamily("powermean_event_streams", "Open event streams.", value=self._events.clients)


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
