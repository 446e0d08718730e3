"""What nodes report, and how much of it is free."""

from collections import defaultdict
from collections.abc import Collection
from dataclasses import replace
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.api import NodeView
from powermean.contracts.attempts import NameRival, NodeReport
from server.cluster import engines
from server.db.models import Attempt, Job, Node
from server.db.scoped import ScopedSession
from server.db.session import changes, database_now, upsert
from server.jobs import allocations
from server.nodes import OVER, attempts_holding, check_name, is_alive, living_nodes, rival_of
from server.placement.state import NodeCapacity
from server.settings import Settings


def accept_report(session: Session, settings: Settings, node_id: str, report: NodeReport) -> NameRival | None:
    """Store a node's report, including that on its engine services; who else tried to use its name.

    What ended attempts still hold there is freed once the node no longer reports their processes.

    Raises NodeNameTakenError where the name is another worker's.
    """
    now = database_now(session)
    data = report.model_dump(mode="json")
    known = session.get(Node, node_id)
    if known is not None:
        check_name(session, settings, known, report, now)
        if known.instance != report.instance:  # who was refused may be who has the name now
            known.rival = None
    if known is None or known.report != data:
        changes(session).plan = True
    upsert(
        session,
        Node,
        [{"id": node_id, "instance": report.instance, "report": data, "seen_at": now}],
        replace=("instance", "report", "seen_at"),
    )
    for attempt_id in attempts_holding(session, node_id, OVER):
        if attempt_id not in report.running:
            allocations.release(session, attempt_id, now, node_id=node_id)
    engines.accept_reports(session, node_id, report.services, now)
    return rival_of(known, now) if known is not None else None


def list_nodes(session: ScopedSession, settings: Settings) -> list[NodeView]:
    """All nodes that ever reported, by id, with the attempts that hold resources there.

    Those of projects that the caller doesn't see are counted alone.
    """
    now = database_now(session)
    held: dict[str, dict[str, None]] = defaultdict(dict)  # in order of allocation
    for allocation in allocations.held(session):
        held[allocation.node_id][allocation.attempt_id] = None
    everywhere = [attempt_id for attempts in held.values() for attempt_id in attempts]
    query = select(Attempt.id).join(Job, Job.id == Attempt.job_id).where(Attempt.id.in_(everywhere))
    seen = set(session.scalars(query))
    return [
        NodeView(
            id=node.id,
            alive=is_alive(node, settings, now),
            seen_at=node.seen_at,
            attempts=tuple(attempt_id for attempt_id in held[node.id] if attempt_id in seen),
            other_attempts=sum(attempt_id not in seen for attempt_id in held[node.id]),
            rival=rival_of(node, now),
            closed=cast(Literal["cordoned", "draining"] | None, node.closed),
            closed_reason=node.closed_reason,
            drain_at=node.drain_at,
            **{
                name: value
                for name, value in dict(_report(node)).items()
                if name not in ("running", "checking", "services", "instance")
            },
        )
        for node in session.execute(select(Node).order_by(Node.id)).scalars()
    ]


def capacities(session: Session, settings: Settings, now: datetime) -> list[NodeCapacity]:
    """What the live nodes have, and how much of it no attempt and no engine service holds."""
    gpus_held = engines.gpus_held(session)
    served = {node_id: set(uuids) for node_id, uuids in gpus_held.items()}
    slots_held: dict[str, set[str]] = defaultdict(set)
    for allocation in allocations.held(session):
        if allocation.engine_id is not None:
            continue  # a slot in an engine service, which holds the resources itself
        if allocation.gpu_uuids:
            gpus_held[allocation.node_id].update(allocation.gpu_uuids)
        else:
            slots_held[allocation.node_id].add(allocation.attempt_id)
    found = []
    for node in living_nodes(session, settings, now):
        for service in _report(node).services:  # including removed services, until they are gone
            gpus_held[node.id].update(service.gpu_uuids)
            served.setdefault(node.id, set()).update(service.gpu_uuids)
        whole = replace(empty(node), served=len(served.get(node.id, ())))
        found.append(
            replace(
                whole,
                free_cpu_slots=max(0, whole.cpu_slots - len(slots_held[node.id])),
                free_gpus=tuple(uuid for uuid in whole.free_gpus if uuid not in gpus_held[node.id]),
            )
            if whole.full_disk is None and whole.closed is None
            else replace(whole, free_cpu_slots=0, free_gpus=())
        )
    return found


def known(session: Session, living: Collection[str]) -> tuple[list[NodeCapacity], list[NodeCapacity]]:
    """All nodes that ever reported, as if nothing ran there: the living ones, and the others."""
    nodes = session.execute(select(Node).order_by(Node.id)).scalars().all()
    made = [empty(node) for node in nodes]
    return [one for one in made if one.id in living], [one for one in made if one.id not in living]


def checking(session: Session, living: Collection[str]) -> dict[str, str]:
    """Which living node checks which job's spec, by job; of several nodes the first."""
    nodes = session.execute(select(Node).where(Node.id.in_(living)).order_by(Node.id.desc())).scalars()
    return {job_id: node.id for node in nodes for job_id in _report(node).checking}


def empty(node: Node) -> NodeCapacity:
    """What the node would have free if nothing ran there."""
    report = _report(node)
    return NodeCapacity(
        id=node.id,
        cpu_slots=report.cpu_slots,
        gpus=len(report.gpus),
        free_cpu_slots=report.cpu_slots,
        free_gpus=tuple(gpu.uuid for gpu in report.gpus),
        engines=report.engines,
        full_disk=report.full_disk,
        closed=node.closed_reason if node.closed else None,
        labels=frozenset(report.labels.items()),
        gpu_info=report.gpus,
    )


def _report(node: Node) -> NodeReport:
    return NodeReport.model_validate(node.report)
