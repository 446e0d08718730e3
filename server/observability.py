"""A server process's metrics and the parts it needs, for /metrics and /readyz."""

from collections.abc import Iterator
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from powermean.artefacts import ArtefactStore
from server.connections import Connections, Who
from server.db.session import Database
from server.gauges import ClusterGauges
from server.metrics.stream import EventHub
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
        self.registry.register(ClusterGauges(database, settings, me))
        self.registry.register(_Process(events, connections))
        self.parts = Parts(settings, database, store, connections, self.registry)


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
