"""What `/metrics` says of the whole cluster, from the database.

All servers say the same. Read at most every few seconds, whoever asks: some callers are Prometheus servers,
each with an interval of its own. Labels have few values: what is beyond the largest is summed up.
"""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from powermean.contracts.attempts import NodeReport
from server.cluster import engines
from server.cluster.leadership import leader
from server.cluster.presence import count_alive
from server.cluster.quotas import held_by_project
from server.cluster.unusable import unusable
from server.db.models import Job, Node, Project
from server.db.session import Database, database_now
from server.jobs import allocations
from server.nodes import is_alive
from server.settings import Settings

READ_S = 5.0  # for how long what was read holds
MOST = 50  # values of a label
OTHERS = "(others)"  # no project can be called that

Values = Mapping[str, float]  # by the value of the label; "" of a gauge without one


@dataclass(frozen=True)
class Gauge:
    """Its label, if it has one, and what it means."""

    label: str
    meaning: str


GAUGES = {
    "powermean_jobs": Gauge("state", "Jobs in each state, without deleted ones."),
    "powermean_jobs_longest_wait_seconds": Gauge(
        "state", "How long the oldest queued and the oldest validating job has been that; 0: there is none."
    ),
    "powermean_gpus": Gauge("type", "GPUs of connected nodes."),
    "powermean_gpus_in_use": Gauge("type", "Of these, what jobs and engines hold."),
    "powermean_gpus_unhealthy": Gauge(
        "type", "Of these, what is given no work: ill, or reported by an earlier node, too."
    ),
    "powermean_cpu_slots": Gauge("", "CPU slots of connected nodes."),
    "powermean_cpu_slots_in_use": Gauge("", "Of these, what jobs hold."),
    "powermean_project_gpus_in_use": Gauge("project", "GPUs that a project's jobs hold, on any node."),
    "powermean_nodes": Gauge(
        "state",
        "Nodes that take work (open), that are cordoned or draining, and that have not reported for "
        "POWERMEAN_NODE_TIMEOUT_S (silent).",
    ),
    "powermean_nodes_alive": Gauge("", "Connected nodes: all but the silent ones."),
    "powermean_nodes_disk_full": Gauge("", "Connected nodes that get no jobs because a disk is full."),
    "powermean_servers_alive": Gauge("", "Servers that share the database."),
    "powermean_leads": Gauge("", "1 if this server schedules for all."),
}


class ClusterGauges(Collector):
    """The gauges of one server process, whose id is `me`."""

    def __init__(self, database: Database, settings: Settings, me: str) -> None:
        self._database = database
        self._settings = settings
        self._me = me
        self._lock = threading.Lock()
        self._read: dict[str, Values] = {}
        self._read_at = float("-inf")

    def describe(self) -> Iterable[GaugeMetricFamily]:
        return []  # else registering would read the database

    def collect(self) -> Iterator[GaugeMetricFamily]:
        for name, values in self._values().items():
            gauge = GAUGES[name]
            family = GaugeMetricFamily(name, gauge.meaning, labels=[gauge.label] if gauge.label else [])
            for value, number in values.items():
                family.add_metric([value] if gauge.label else [], number)
            yield family

    def _values(self) -> dict[str, Values]:
        with self._lock:
            if time.monotonic() - self._read_at > READ_S:
                with self._database.read() as session:
                    leads = leader(session, self._settings.leader_lease_s) == self._me
                    self._read = {
                        **_jobs(session),
                        **_hardware(session, self._settings),
                        **_projects(session),
                        "powermean_servers_alive": {"": count_alive(session)},
                        "powermean_leads": {"": leads},
                    }
                self._read_at = time.monotonic()
            return self._read


def _jobs(session: Session) -> dict[str, Values]:
    counted = select(Job.state, func.count()).group_by(Job.state)
    # From two indexes: one count over the rows that are not deleted would read all the specs.
    states = Counter(dict(session.execute(counted).all()))
    states.subtract(session.scalars(select(Job.state).where(Job.deleted_at.is_not(None))))
    now, waits = database_now(session), {}
    for state, since in ((JobState.QUEUED, Job.queued_at), (JobState.VALIDATING, Job.created_at)):
        oldest = session.scalar(select(func.min(since)).where(Job.state == state))
        waits[str(state)] = max(0.0, (now - oldest).total_seconds()) if oldest else 0.0
    return {
        "powermean_jobs": {state: states[state] for state in JobState},
        "powermean_jobs_longest_wait_seconds": waits,
    }


def _hardware(session: Session, settings: Settings) -> dict[str, Values]:
    now = database_now(session)
    nodes = session.scalars(select(Node)).all()
    living = [node for node in nodes if is_alive(node, settings, now)]
    reports = {node.id: NodeReport.model_validate(node.report) for node in living}
    states = Counter((node.closed or "open") if node.id in reports else "silent" for node in nodes)
    reasons, (held, slots) = unusable(living), _held(session, reports)
    gpus = [(node_id, gpu) for node_id, report in reports.items() for gpu in report.gpus]
    there = Counter(gpu.name for _, gpu in gpus)
    types = [name for name, _ in there.most_common()]
    in_use = Counter(gpu.name for node_id, gpu in gpus if gpu.uuid in held[node_id])
    unhealthy = Counter(gpu.name for node_id, gpu in gpus if gpu.uuid in reasons.get(node_id, {}))
    return {
        "powermean_gpus": _capped(there, types),
        "powermean_gpus_in_use": _capped(in_use, types),
        "powermean_gpus_unhealthy": _capped(unhealthy, types),
        "powermean_cpu_slots": {"": sum(report.cpu_slots for report in reports.values())},
        "powermean_cpu_slots_in_use": {"": slots},
        "powermean_nodes": {state: states[state] for state in ("open", "cordoned", "draining", "silent")},
        "powermean_nodes_alive": {"": len(living)},
        "powermean_nodes_disk_full": {"": sum(report.full_disk is not None for report in reports.values())},
    }


def _held(session: Session, reports: Mapping[str, NodeReport]) -> tuple[Mapping[str, set[str]], int]:
    """The GPUs that jobs and engines hold, by node, and how many CPU slots of these nodes jobs hold."""
    gpus, slots = defaultdict(set, engines.gpus_held(session)), set()
    for part in allocations.held(session):
        gpus[part.node_id].update(part.gpu_uuids)
        if not part.gpu_uuids and part.engine_id is None and part.node_id in reports:
            slots.add((part.node_id, part.attempt_id))
    for node_id, report in reports.items():
        gpus[node_id].update(uuid for service in report.services for uuid in service.gpu_uuids)
    return gpus, len(slots)


def _projects(session: Session) -> dict[str, Values]:
    gpus = dict.fromkeys(session.scalars(select(Project.id).where(Project.deleted_at.is_(None))), 0)
    gpus |= {project: held for project, (held, _) in held_by_project(session).items()}
    order = sorted(gpus, key=lambda project: (-gpus[project], project))
    return {"powermean_project_gpus_in_use": _capped(gpus, order)}


def _capped(values: Values, order: Sequence[str]) -> Values:
    """The values of the first names, and the sum of the others'."""
    found = {name: values.get(name, 0) for name in order[:MOST]}
    return found | ({OTHERS: sum(values.get(name, 0) for name in order[MOST:])} if order[MOST:] else {})
