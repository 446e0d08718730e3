"""Engine services: declared by an administrator, placed by the scheduler, run and reported by a node.

A service belongs to one node at a time; `generation` counts its placements, so that reports about an earlier
one are ignored. The answer to each of its node's reports says what to run, so no message can get lost. A
job's slot is its allocation, so the slot is free once the allocation is released.
"""

import secrets
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from urllib.parse import urlsplit

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from powermean.allowed_models import AllowedModels
from powermean.contracts.attempts import ClaimedEngine, EngineReport, JobError
from powermean.contracts.engines import EngineOrder, EngineSpec, NodeOrders
from powermean.contracts.engines import EngineService as EngineView
from server.db.models import Allocation, Attempt, EngineService, Job, Node, Project
from server.db.scoped import ScopedSession
from server.db.session import changes, database_now
from server.errors import ConflictError, InvalidInputError, NotFoundError
from server.jobs.demand import model_key, resolved_dtype
from server.jobs.service import check_model
from server.placement.state import Placement, SharedEngine, WaitingEngine
from server.settings import is_loopback

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def create(
    session: ScopedSession, person_id: str, spec: EngineSpec, allowed: AllowedModels = ()
) -> EngineView:
    """Declare an engine service; the scheduler finds it a node.

    Raises:
        ConflictError: the name is taken.
        InvalidInputError: the model is not allowed, or there is no such project.
    """
    check_model(spec.model.name, allowed)
    for place, project in enumerate(spec.projects):
        if session.get(Project, project) is None:
            raise InvalidInputError.at(
                f"projects.{place}", f"no project {project}", "GET /v1/projects lists yours."
            )
    row = EngineService(
        id="engine-" + "".join(secrets.choice(_ALPHABET) for _ in range(12)),
        name=spec.name,
        spec=spec.model_dump(mode="json"),
        state="waiting",
        gpu_uuids=[],
        generation=0,
        why="waiting for the scheduler",
        created_by=person_id,
        created_at=database_now(session),
    )
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise ConflictError(
            f"there already is an engine named {spec.name}",
            remedy="Choose another name, or remove that engine first (its jobs finish before it ends).",
        ) from error
    changes(session).plan = True
    return _view(row, ())


def list_engines(session: ScopedSession, living: Collection[str]) -> list[EngineView]:
    """Those that the caller's projects may use, by name; `living` are the nodes that reported recently."""
    rows = session.execute(select(EngineService).order_by(EngineService.name)).scalars().all()
    jobs = _jobs(session, rows)
    views = (_view(row, jobs[row.id], living) for row in rows)
    return [seen for view in views if (seen := _as_seen(view, session.projects)) is not None]


def show(session: ScopedSession, engine_id: str, living: Collection[str]) -> EngineView:
    """One engine service that the caller's projects may use. Raises NotFoundError."""
    row = session.get(EngineService, engine_id)
    if row is None:
        raise _unknown(engine_id)
    view = _as_seen(_view(row, _jobs(session, [row])[row.id], living), session.projects)
    if view is None:
        raise _unknown(engine_id)
    return view


def _as_seen(view: EngineView, projects: frozenset[str] | None) -> EngineView | None:
    """The service without the names of projects that are not among these; None: it serves none of these."""
    if not is_shown(view.spec.projects, projects):
        return None
    own = tuple(name for name in view.spec.projects if projects is None or name in projects)
    return view.model_copy(update={"spec": view.spec.model_copy(update={"projects": own})})


def is_shown(served: Collection[str], projects: frozenset[str] | None) -> bool:
    """Whether members of `projects` (None: of all) may know of a service for these; for none: for all."""
    return not served or projects is None or not projects.isdisjoint(served)


def remove(session: ScopedSession, engine_id: str, living: Collection[str]) -> EngineView:
    """Make it take no new jobs and end after its current ones. Raises NotFoundError."""
    found = _locked(session, EngineService.id == engine_id)
    if not found:
        raise _unknown(engine_id)
    row, jobs = found[0], _jobs(session, found)[engine_id]
    if row.node is None:
        session.delete(row)
    row.state = "stopping"
    row.why = None
    changes(session).plan = True
    return _view(row, jobs, living)


def accept_reports(session: Session, node_id: str, reports: Iterable[EngineReport], now: datetime) -> None:
    """Record a node's report on its services; delete those that were told to stop and have stopped."""
    said = {(report.id, report.generation): report for report in reports}
    rows = _locked(session, EngineService.node == node_id)
    jobs = _jobs(session, rows)
    for row in rows:
        before = row.state
        report = said.get((row.id, row.generation))
        if report is not None:
            row.report = report.model_dump(mode="json")
            row.url = report.url or row.url  # a restart does not move it
            row.error = report.error.model_dump(mode="json") if report.error else None
            row.seen_at = now
        if row.state == "stopping":
            if report is None and not jobs[row.id]:
                session.delete(row)
                changes(session).plan = True
            continue
        row.state = report.state if report is not None and report.state != "stopping" else "starting"
        if row.state != before:
            changes(session).plan = True


def orders(session: Session, node_id: str, sign: Callable[[str, int], str]) -> NodeOrders:
    """What the node should run. `sign` makes the token for a service's state from its id and generation."""
    query = select(EngineService).where(EngineService.node == node_id).order_by(EngineService.id)
    rows = session.execute(query).scalars().all()
    jobs = _jobs(session, rows)
    return NodeOrders(
        engines=tuple(
            EngineOrder(
                id=row.id,
                generation=row.generation,
                spec=EngineSpec.model_validate(row.spec),
                gpu_uuids=tuple(row.gpu_uuids),
                jobs=jobs[row.id],
                token=sign(row.id, row.generation),
            )
            for row in rows
            if row.state != "stopping" or jobs[row.id]
        )
    )


def any_stranded(session: Session, living: Collection[str]) -> bool:
    """Whether a service belongs to a node that is offline."""
    nodes = session.execute(select(EngineService.node).where(EngineService.node.is_not(None))).scalars()
    return any(node not in living for node in nodes)


def reap(session: Session, living: Iterable[str]) -> None:
    """Take services away from nodes that are offline, so that they start elsewhere.

    A service stays while an attempt that samples from it may still run: if the node is back soon, both
    continue. The GPUs given up here are not free yet: their node is offline, and when it is back it reports
    what it runs.
    """
    alive = set(living)
    for row in _locked(session, EngineService.node.is_not(None)):
        if row.node in alive or _in_use(session, row):
            continue
        if row.state == "stopping":
            session.delete(row)
            continue
        _take_away(row, f"node {row.node} is offline")


def any_to_move(session: Session, draining: Collection[str]) -> bool:
    """Whether a service has to leave one of these nodes, and no attempt samples from it any more."""
    query = select(EngineService).where(EngineService.node.in_(draining), EngineService.state != "stopping")
    return any(not _in_use(session, row) for row in session.execute(query).scalars())


def move(session: Session, draining: Mapping[str, str]) -> None:
    """Take services away from nodes that drain (with the reason), so that they start elsewhere.

    One that an attempt samples from stays until the attempt has left.
    """
    for row in _locked(session, EngineService.node.in_(draining), EngineService.state != "stopping"):
        if row.node is not None and not _in_use(session, row):
            _take_away(row, draining[row.node])
            changes(session).plan = True


def _take_away(row: EngineService, why: str) -> None:
    row.state, row.why = "waiting", why[:200]
    row.node = row.url = row.report = row.error = None
    row.gpu_uuids = []


def place(session: Session, placements: Sequence[Placement], why: Mapping[str, str]) -> None:
    """Carry out a plan: assign services to nodes, and say what the others wait for."""
    chosen = {placement.engine_id: placement for placement in placements}
    for row in _locked(session, EngineService.state == "waiting"):
        if placement := chosen.get(row.id):
            row.state, row.why = "starting", None
            row.node, row.gpu_uuids = placement.node_id, list(placement.gpu_uuids)
            row.generation += 1
        elif row.id in why:
            row.why = why[row.id][:200]


def unplaced(session: Session) -> list[WaitingEngine]:
    """Services without a node, oldest first."""
    query = select(EngineService).where(EngineService.state == "waiting")
    rows = session.execute(query.order_by(EngineService.created_at, EngineService.id)).scalars()
    return [WaitingEngine(row.id, row.spec["gpus"], row.spec["node"]) for row in rows]


def shared(session: Session, living: Iterable[str]) -> list[SharedEngine]:
    """Services that take jobs now or will later."""
    alive = set(living)
    query = select(EngineService).where(EngineService.state != "stopping").order_by(EngineService.id)
    rows = session.execute(query.execution_options(populate_existing=True)).scalars().all()
    jobs = _jobs(session, rows)
    shut = session.execute(select(Node.id, Node.closed).where(Node.closed.is_not(None)))
    closed = {row.id: row.closed for row in shut}
    return [_as_shared(row, jobs[row.id], _state(row, alive, closed)) for row in rows]


def claimed(session: Session, allocations: Iterable[Allocation]) -> ClaimedEngine | None:
    """The service in which an attempt has a slot, if any.

    Raises:
        ConflictError: the service is gone. The attempt lapses unclaimed, and the job is planned again.
    """
    for part in allocations:
        if part.engine_id is None:
            continue
        row = session.get(EngineService, part.engine_id)
        if row is None or row.url is None or row.node != part.node_id:
            raise ConflictError(f"engine {part.engine_id} is gone", remedy="Drop the task.")
        return ClaimedEngine(id=row.id, url=row.url)
    return None


def placed(session: Session) -> set[str]:
    """The nodes that services belong to."""
    return {node for node in session.scalars(select(EngineService.node)) if node is not None}


def gpus_held(session: Session) -> dict[str, set[str]]:
    """GPUs held by services, by node."""
    held: dict[str, set[str]] = defaultdict(set)
    for row in session.execute(select(EngineService).where(EngineService.node.is_not(None))).scalars():
        held[row.node or ""].update(row.gpu_uuids)
    return held


def _state(row: EngineService, alive: Collection[str], closed: Mapping[str, str | None]) -> str:
    """For jobs: `ready` only where a new one may begin."""
    if row.node is None:
        return row.state
    if row.node not in alive:
        return "its node is offline"
    return f"its node is {closed[row.node]}" if row.node in closed else row.state


def _as_shared(row: EngineService, jobs: Iterable[str], state: str) -> SharedEngine:
    spec = EngineSpec.model_validate(row.spec)
    said = row.report["max_model_len"] if row.report else None
    return SharedEngine(
        id=row.id,
        name=row.name,
        model=model_key(spec.model.name, spec.model.folder),
        dtype=resolved_dtype(spec.dtype, spec.gpus),
        state=state,
        max_adapters=spec.max_adapters,
        max_lora_rank=spec.max_lora_rank,
        max_tokens=said or spec.max_model_len,
        node=row.node,
        reach=row.node if row.url is None or is_loopback(urlsplit(row.url).hostname or "") else None,
        jobs=frozenset(jobs),
        projects=frozenset(spec.projects),
    )


def _jobs(session: Session, rows: Sequence[EngineService]) -> dict[str, tuple[str, ...]]:
    """Jobs with a slot in each service, where it runs now."""
    query = (
        select(Allocation.engine_id, Allocation.node_id, Attempt.job_id)
        .join(Attempt, Attempt.id == Allocation.attempt_id)
        .join(Job, Job.id == Attempt.job_id)  # so that people see the jobs of their projects alone
        .where(Allocation.engine_id.in_([row.id for row in rows]), Allocation.released_at.is_(None))
        .order_by(Attempt.job_id)
        .distinct()
    )
    found: dict[str, list[str]] = defaultdict(list)
    if rows:
        where = {row.id: row.node for row in rows}
        for engine_id, node_id, job_id in session.execute(query):
            if engine_id is not None and where[engine_id] == node_id:
                found[engine_id].append(job_id)
    return defaultdict(tuple, {engine_id: tuple(jobs) for engine_id, jobs in found.items()})


def _in_use(session: Session, row: EngineService) -> bool:
    query = (
        select(Attempt.id)
        .join(Allocation, Allocation.attempt_id == Attempt.id)
        .where(Allocation.engine_id == row.id, Attempt.state.in_(("starting", "running")))
        .limit(1)
    )
    return session.execute(query).first() is not None


def _locked(session: Session, *which: object) -> Sequence[EngineService]:
    """Services, freshly read and locked in order of id, so that two transactions can't deadlock."""
    query = select(EngineService).where(*which).order_by(EngineService.id)  # type: ignore[arg-type]
    locked = query.with_for_update(key_share=True).execution_options(populate_existing=True)
    return session.execute(locked).scalars().all()


def _unknown(engine_id: str) -> NotFoundError:
    return NotFoundError(f"no engine {engine_id}", remedy="GET /v1/engines lists the engines.")


def _why(row: EngineService, jobs: int, offline: bool) -> str | None:
    if offline:
        return f"node {row.node} is offline: this is its last report"
    if row.state == "stopping" and jobs:
        return f"{jobs} job{'s' if jobs > 1 else ''} still sample{'s' if jobs == 1 else ''} from it"
    return row.why


def _view(row: EngineService, jobs: Sequence[str], living: Collection[str] = ()) -> EngineView:
    return EngineView.model_validate(
        {
            "id": row.id,
            "spec": row.spec,
            "state": row.state,
            "node": row.node,
            "gpu_uuids": row.gpu_uuids,
            "url": row.url,
            "generation": row.generation,
            "error": JobError.model_validate(row.error) if row.error else None,
            "why": _why(row, len(jobs), offline=row.node is not None and row.node not in living),
            "report": EngineReport.model_validate(row.report) if row.report else None,
            "jobs": jobs,
            "created_at": row.created_at,
            "seen_at": row.seen_at,
        }
    )
