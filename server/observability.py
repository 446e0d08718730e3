"""A server process's metrics and the parts it needs, for /metrics and /readyz."""

from collections.abc import Iterable, Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from powermean.artefacts import ArtefactStore
from powermean.contracts.api import JobState
from server.cluster.leadership import leader
from server.cluster.presence import count_alive
from server.connections import Connections, Who
from server.db.models import Job
from server.db.session import Database
from server.metrics.stream import EventHub
from server.nodes import living_ids
from server.readiness import Parts
from server.settings import Settings


class Observatory:
    """One server process's metrics, and the parts of the service as it finds them."""

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
        self.registry.register(_Cluster(database, events, connections, settings, me))
        self.parts = Parts(settings, database, store, connections, self.registry)


class _Cluster(Collector):
    """Gauges from the database, read on demand."""

    def __init__(
        self, database: Database, events: EventHub, connections: Connections, settings: Settings, me: str
    ) -> None:
        self._me = me
        self._database = database
        self._events = events
        self._connections = connections
        self._settings = settings

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # else registering would read the database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        with self._database.read() as session:
            states = dict(
                session.execute(
                    select(Job.state, func.count()).where(Job.deleted_at.is_(None)).group_by(Job.state)
                ).all()
            )
            alive = len(living_ids(session, self._settings))
            servers = count_alive(session)
            leads = leader(session, self._settings.leader_lease_s) == self._me
        jobs = GaugeMetricFamily("powermean_jobs", "Jobs by state.", labels=["state"])
        for state in JobState:
            jobs.add_metric([state], states.get(state, 0))
        yield jobs
        yield GaugeMetricFamily("powermean_nodes_alive", "Nodes that reported recently.", value=alive)
        yield GaugeMetricFamily("powermean_servers_alive", "Servers that share the database.", value=servers)
        yield GaugeMetricFamily("powermean_leads", "1 if this server schedules for all.", value=leads)
        held = GaugeMetricFamily("powermean_connections", "Open connections.", labels=["who"])
        for who in get_args(Who):
            held.add_metric([who], self._connections.count(who))
        yield held
        yield GaugeMetricFamily("powermean_event_streams", "Open event streams.", value=self._events.clients)
