"""A server process's metrics and readiness checks, for /metrics and /readyz."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator

import redis
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.api import FieldError, JobState
from server.cluster.leadership import is_led
from server.db.models import Job
from server.db.session import Database
from server.metrics.stream import EventHub
from server.nodes import living_ids
from server.settings import Settings

CHECK_TIMEOUT_S = 2.0
READINESS_LIFETIME_S = 2.0  # limits the checks that unauthenticated callers can cause

log = logging.getLogger(__name__)


class Observatory:
    """One server process's metrics and readiness checks."""

    def __init__(
        self, settings: Settings, database: Database, store: ArtefactStore, events: EventHub
    ) -> None:
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
        self.registry.register(_Cluster(database, events, settings))
        self._checks: dict[str, Callable[[], str | None]] = {
            "database": lambda: _check_database(database),
            "redis": lambda: _check_redis(settings.redis_url),
            "artefacts": lambda: _check_store(store),
            "scheduler": lambda: _check_scheduler(database, settings),
        }
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._wrong: tuple[FieldError, ...] = ()

    def wrong(self) -> tuple[FieldError, ...]:
        """Problems of each part that the server needs; checked at most every 2 s."""
        with self._lock:
            if time.monotonic() - self._checked_at > READINESS_LIFETIME_S:
                found = {part: check() for part, check in self._checks.items()}
                self._wrong = tuple(FieldError(path=part, message=why) for part, why in found.items() if why)
                self._checked_at = time.monotonic()
            return self._wrong


class _Cluster(Collector):
    """Gauges from the database, read on demand."""

    def __init__(self, database: Database, events: EventHub, settings: Settings) -> None:
        self._database = database
        self._events = events
        self._settings = settings

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # else registering would read the database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._database.read() as session:
            states = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
            alive = len(living_ids(session, self._settings))
        jobs = GaugeMetricFamily("powermean_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            jobs.add_metric([state], states.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("powermean_nodes_alive", "Nodes that reported recently.", value=alive)
        yield GaugeMetricFamily("powermean_event_streams", "Open event streams.", value=self._events.clients)


def _check_database(database: Database) -> str | None:
    try:
        with database.read() as session:
            session.execute(text("SELECT 1"))
    except SQLAlchemyError:
        log.exception("the database does not answer")
        return "does not answer"
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
    if not settings.scheduler:
        return None
    try:
        with database.read() as session:
            led = is_led(session, settings.leader_lease_s)
    except SQLAlchemyError:
        return None  # the database's check says it
    return None if led else "has no leader: nothing is scheduled"


def _check_store(store: ArtefactStore) -> str | None:
    try:
        store.probe()
    except ArtefactError as error:
        log.warning("the artefact store fails its probe: %s", error)
        return f"can't be written ({error.code})"
    return None
