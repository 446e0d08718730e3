"""Whether the server lives and is ready, and what it does: /healthz, /readyz, /metrics.

Health answers without a key and tells nothing but names of parts; everything else needs one, /metrics too.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import timedelta
from typing import Annotated, Literal

import redis
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy import func, select, text
from sqlalchemy.exc import SQLAlchemyError

from powermean.artefacts import ArtefactError, ArtefactStore
from powermean.contracts.api import FieldError, JobState
from powermean.contracts.base import Contract
from server.db.models import Job, Node
from server.db.session import Database, database_now
from server.errors import UnavailableError
from server.identity.access import CurrentPerson
from server.metrics.stream import EventHub
from server.request_log import RequestLog
from server.settings import Settings

CHECK_TIMEOUT_S = 2.0
READINESS_LIFETIME_S = 2.0  # nobody without a key makes the server check more often

log = logging.getLogger(__name__)
router = APIRouter(tags=["operations"])


class Health(Contract):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(Contract):
    """All that the server needs is there."""

    status: Literal["ready"] = "ready"


class Observatory:
    """What one server process counts, and the checks of what it needs."""

    def __init__(
        self, settings: Settings, database: Database, store: ArtefactStore, events: EventHub
    ) -> None:
        self.registry = CollectorRegistry()
        self.ingested = Counter(
            "powermean_ingested_rows", "Rows that attempts reported.", ["kind"], registry=self.registry
        )
        self.requests = Histogram(
            "powermean_request_seconds",
            "Time to the first byte of the answer.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.registry.register(_Cluster(database, events, settings.node_timeout_s))
        self._checks: dict[str, Callable[[], str | None]] = {
            "database": lambda: _check_database(database),
            "redis": lambda: _check_redis(settings.redis_url),
            "artefacts": lambda: _check_store(store),
        }
        self._lock = threading.Lock()
        self._checked_at = float("-inf")
        self._wrong: tuple[FieldError, ...] = ()

    def wrong(self) -> tuple[FieldError, ...]:
        """What keeps the server from working: parts' names and what is the matter; checked once in 2 s."""
        with self._lock:
            if time.monotonic() - self._checked_at > READINESS_LIFETIME_S:
                found = {part: check() for part, check in self._checks.items()}
                self._wrong = tuple(FieldError(path=part, message=why) for part, why in found.items() if why)
                self._checked_at = time.monotonic()
            return self._wrong


class _Cluster(Collector):
    """Gauges that the database knows, read when they are asked for."""

    def __init__(self, database: Database, events: EventHub, node_timeout_s: float) -> None:
        self._database = database
        self._events = events
        self._node_timeout = timedelta(seconds=node_timeout_s)

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # else registering would read the database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._database.read() as session:
            states = dict(session.execute(select(Job.state, func.count()).group_by(Job.state)).all())
            oldest = database_now(session) - self._node_timeout
            alive = session.scalar(select(func.count()).where(Node.seen_at > oldest)) or 0
        jobs = GaugeMetricFamily("powermean_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            jobs.add_metric([state], states.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("powermean_nodes_alive", "Nodes heard of lately.", value=alive)
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


def _check_store(store: ArtefactStore) -> str | None:
    try:
        store.probe()
    except ArtefactError as error:
        log.warning("the artefact store fails its probe: %s", error)
        return f"cannot be written ({error.code})"
    return None


def install_observability(app: FastAPI) -> None:
    """Add the routes and the request log; app.state must have settings, database, artefacts and events."""
    state = app.state
    state.observatory = Observatory(state.settings, state.database, state.artefacts, state.events)
    app.include_router(router)
    app.add_middleware(RequestLog, seconds=state.observatory.requests)


def _observatory_of(request: Request) -> Observatory:
    found: Observatory = request.app.state.observatory
    return found


RequestObservatory = Annotated[Observatory, Depends(_observatory_of)]


@router.get("/healthz", summary="Does the process answer?")
def healthz() -> Health:
    """Needs no key. Says nothing of what the server needs: restart the process if this fails."""
    return Health()


@router.get("/readyz", summary="Can it do its work?")
def readyz(observatory: RequestObservatory) -> Readiness:
    """Needs no key. 503 names the parts that are wrong: database, redis, artefacts."""
    if wrong := observatory.wrong():
        raise UnavailableError(
            f"not ready: {', '.join(error.path for error in wrong)}",
            remedy="The server's log says more.",
            fields=wrong,
        )
    return Readiness()


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def prometheus(person: CurrentPerson, observatory: RequestObservatory) -> Response:
    """Needs a key: let Prometheus send it as bearer."""
    return Response(generate_latest(observatory.registry), media_type=CONTENT_TYPE_LATEST)
