"""What nodes report, and how much of it is free."""

import logging
from collections import defaultdict
from collections.abc import Collection, Container, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from powermean.contracts.api import NodeSample, NodeView
from powermean.contracts.attempts import NameRival, NodeReport
from server.cluster import engines, pilots, samples
from server.cluster.drains import why_closed
from server.cluster.unusable import unusable
from server.db.inserts import upsert
from server.db.models import DRAINING, Allocation, Attempt, Job, Node
from server.db.scoped import ScopedSession
from server.db.session import changes, database_now
from server.errors import NotFoundError
from server.jobs import allocations, members
from server.nodes import OVER, attempts_holding, check_name, is_alive, living_nodes, rival_of
from server.placement.state import NodeCapacity
from server.replays.repository import busy_nodes
from server.settings import Settings

log = logging.getLogger(__name__)

# What changes with every report: samples.py keeps it, and nothing is planned anew for it.
FAST: Any = {
    "number": True,
    "use": True,
    "gpus": {"__all__": samples.GAUGES},
    "services": {"__all__": {"requests", "adapters"}},
}


def accept_report(session: Session, settings: Settings, node_id: str, report: NodeReport) -> NameRival | None:
    """Store a node's report, including that on its engine services; who else tried to use its name.

    What ended attempts still hold there is freed once the node no longer reports their processes. A server
    that was frozen may take a report when a newer one has been stored: it changes nothing.

    Raises NodeNameTakenError where the name is another worker's.
    """
    now = database_now(session)
    # Without defaults: a server of the version before, which may lead meanwhile, refuses later fields.
    data = report.model_dump(mode="json", exclude=FAST, exclude_defaults=True)
    known = session.get(Node, node_id, with_for_update=True)  # two servers may have reports of one node
    if known is not None:
        check_name(session, settings, known, report, now)
        if _is_late(known, report):
            log.warning("node %s: report %s came late and is ignored", node_id, report.number)
            return rival_of(known, now)
        if known.instance != report.instance:  # who was refused may be who has the name now
            known.rival = None
    if known is None or known.report != data:
        changes(session).plan = True
        row = {"id": node_id, "instance": report.instance, "report": data, "seen_at": now}
        row["report_number"] = report.number
        row["gpus_since"] = _gpus_since(known, report, now)
        upsert(session, Node, [row], replace=("instance", "report", "report_number", "seen_at", "gpus_since"))
    else:
        session.execute(
            update(Node).where(Node.id == node_id).values(seen_at=now, report_number=report.number)
        )
    samples.record(session, node_id, report, now)
    since = now - timedelta(seconds=settings.lease_s)
    for attempt_id in attempts_holding(session, node_id, OVER):
        if attempt_id not in report.running and not members.may_begin(session, attempt_id, node_id, since):
            allocations.release(session, attempt_id, now, node_id=node_id)
    engines.accept_reports(session, node_id, report.services, now)
    return rival_of(known, now) if known is not None else None


def _is_late(known: Node, report: NodeReport) -> bool:
    """Whether a newer report of the same worker has been stored."""
    if known.instance != report.instance or report.number is None or known.report_number is None:
        return False
    return report.number <= known.report_number


def _gpus_since(known: Node | None, report: NodeReport, now: datetime) -> datetime:
    """When the node first reported the newest of its GPUs."""
    before = {gpu.uuid for gpu in _report(known).gpus} if known is not None else set()
    new = any(gpu.uuid not in before for gpu in report.gpus)
    return now if new or known is None or known.gpus_since is None else known.gpus_since


def show_node(session: ScopedSession, settings: Settings, node_id: str) -> NodeView:
    """One node, as in the list. Raises NotFoundError."""
    found = [node for node in list_nodes(session, settings) if node.id == node_id]
    if not found:
        raise NotFoundError(f"no node {node_id}", remedy="GET /v1/nodes lists the nodes.")
    return found[0]


def list_nodes(session: ScopedSession, settings: Settings) -> list[NodeView]:
    """All nodes that ever reported, by id, with the attempts that hold resources there.

    Those of projects that the caller doesn't see are counted alone.
    """
    now = database_now(session)
    held: dict[str, list[Allocation]] = defaultdict(list)  # in order of allocation
    for allocation in allocations.held(session):
        held[allocation.node_id].append(allocation)
    everywhere = [part.attempt_id for parts in held.values() for part in parts]
    query = select(Attempt.id).join(Job, Job.id == Attempt.job_id).where(Attempt.id.in_(everywhere))
    seen = set(session.scalars(query))
    nodes = session.execute(select(Node).order_by(Node.id)).scalars().all()
    reasons = unusable(living_nodes(session, settings, now))
    used, busy = samples.latest(session, now), engines.placed(session) | busy_nodes(session)
    return [
        _view(
            node,
            held[node.id],
            seen,
            used.get(node.id),
            reasons.get(node.id, {}),
            alive=is_alive(node, settings, now),
            rival=rival_of(node, now),
            drained=node.closed == DRAINING and not held[node.id] and node.id not in busy,
        )
        for node in nodes
    ]


def _view(
    node: Node,
    held: Sequence[Allocation],
    seen: Container[str],
    used: NodeSample | None,
    reasons: Mapping[str, str],
    *,
    alive: bool,
    rival: NameRival | None,
    drained: bool,
) -> NodeView:
    report = _report(node)
    attempts = list(dict.fromkeys(part.attempt_id for part in held))
    gauges = {gpu.uuid: gpu.model_dump() for gpu in used.gpus} if used is not None and alive else {}
    there = {gpu.uuid for gpu in report.gpus}
    return NodeView(
        id=node.id,
        hostname=report.hostname,
        gpus=tuple(
            gpu.model_copy(
                update=gauges.get(gpu.uuid, {}) | {"unhealthy": reasons.get(gpu.uuid, gpu.unhealthy)}
            )
            for gpu in report.gpus
        ),
        cpu_slots=report.cpu_slots,
        engines=report.engines,
        labels=report.labels,
        full_disk=report.full_disk,
        version=report.version,
        alive=alive,
        seen_at=node.seen_at,
        closed=cast(Literal["cordoned", "draining"] | None, node.closed),
        closed_reason=node.closed_reason,
        drain_at=node.drain_at,
        drained=drained and not (report.services or report.checking),
        attempts=tuple(attempt_id for attempt_id in attempts if attempt_id in seen),
        other_attempts=sum(attempt_id not in seen for attempt_id in attempts),
        use=used.attempts if used is not None and alive else (),
        missing_gpus=tuple(sorted({uuid for part in held for uuid in part.gpu_uuids} - there)),
        blind=report.blind,
        rival=rival,
    )


def capacities(session: Session, settings: Settings, now: datetime) -> list[NodeCapacity]:
    """What the live nodes have, and how much of it no attempt and no engine service holds."""
    gpus_held = engines.gpus_held(session)
    served = defaultdict(set, {node_id: set(uuids) for node_id, uuids in gpus_held.items()})
    slots_held: dict[str, set[str]] = defaultdict(set)
    for allocation in allocations.held(session):
        if allocation.engine_id is not None:
            continue  # a slot in an engine service, which holds the resources itself
        if allocation.gpu_uuids:
            gpus_held[allocation.node_id].update(allocation.gpu_uuids)
        else:
            slots_held[allocation.node_id].add(allocation.attempt_id)
    living = living_nodes(session, settings, now)
    for node in living:
        for service in _report(node).services:  # including removed services, until they are gone
            gpus_held[node.id].update(service.gpu_uuids)
            served[node.id].update(service.gpu_uuids)
    reasons, ending = unusable(living), pilots.about_to_end(session, settings, now)
    taken = {uuid for uuids in gpus_held.values() for uuid in uuids}  # also under a name that it had before
    found = []
    for node in living:
        whole = empty(node, reasons.get(node.id, {}))
        whole = replace(whole, served=frozenset(served[node.id].intersection(whole.free_gpus)))
        if node.id in ending and whole.closed is None:
            whole = replace(whole, closed=ending[node.id])
        found.append(
            replace(
                whole,
                free_cpu_slots=max(0, whole.cpu_slots - len(slots_held[node.id])),
                free_gpus=tuple(uuid for uuid in whole.free_gpus if uuid not in taken),
            )
            if whole.full_disk is None and whole.closed is None
            else replace(whole, free_cpu_slots=0, free_gpus=())
        )
    return found


def known(session: Session, living: Collection[str]) -> tuple[list[NodeCapacity], list[NodeCapacity]]:
    """All nodes that ever reported, as if nothing ran there: the living ones, and the others.

    The others include one for each pool, as it would start it.
    """
    nodes = session.execute(select(Node).order_by(Node.id)).scalars().all()
    reasons = unusable(node for node in nodes if node.id in living)
    made = [empty(node, reasons.get(node.id, {})) for node in nodes]
    return [one for one in made if one.id in living], [
        *(one for one in made if one.id not in living),
        *pilots.startable(session),
    ]


def checking(session: Session, living: Collection[str]) -> dict[str, str]:
    """Which living node checks which job's spec, by job; of several nodes the first."""
    nodes = session.execute(select(Node).where(Node.id.in_(living)).order_by(Node.id.desc())).scalars()
    return {job_id: node.id for node in nodes for job_id in _report(node).checking}


def empty(node: Node, unusable: Mapping[str, str]) -> NodeCapacity:
    """What the node would have free if nothing ran there; `unusable` GPUs, with the reasons, don't count."""
    report = _report(node)
    usable = tuple(gpu for gpu in report.gpus if gpu.uuid not in unusable)
    return NodeCapacity(
        id=node.id,
        cpu_slots=report.cpu_slots,
        gpus=len(usable),
        free_cpu_slots=report.cpu_slots,
        free_gpus=tuple(gpu.uuid for gpu in usable),
        engines=report.engines,
        full_disk=report.full_disk,
        closed=why_closed(node) if node.closed else None,
        labels=frozenset(report.labels.items()),
        revision=report.revision,
        gpu_info=usable,
        unhealthy=tuple(
            f"GPU {place}: {unusable[gpu.uuid]}"
            for place, gpu in enumerate(report.gpus)
            if gpu.uuid in unusable
        ),
    )


def _report(node: Node) -> NodeReport:
    return NodeReport.model_validate(node.report)
