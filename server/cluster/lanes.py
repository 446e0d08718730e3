"""Who held which GPU and CPU slot when, as lanes over time, and what the attempts did meanwhile.

Spans are exact: they come from allocations. Activities come from the phases that supervisors tell with their
heartbeats, so what lasts shorter than a beat may be missing; only short windows have them.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts import phases
from powermean.contracts.attempts import NodeReport
from powermean.contracts.lanes import Activity, ClusterLanes, Lane, LaneAttempt, Span
from server.cluster import engines
from server.db.models import EngineService, JobEvent, Node
from server.db.session import database_now
from server.errors import InvalidInputError
from server.jobs import allocations
from server.jobs.allocations import Past
from server.jobs.hours import places
from server.nodes import is_alive
from server.settings import Settings

WINDOW = timedelta(hours=1)  # unless another is asked for
LONGEST = timedelta(days=8)
PHASED = timedelta(hours=1, minutes=5)  # up to here phases are shown
MOST_RELEASED = 4000  # allocations; those that are still held come on top, as many as the cluster has places
MOST_PHASED = 100  # attempts, the newest
MOST_EVENTS = 500  # of a job: more than an hour of heartbeats
OTHERS = "of another project"  # instead of an engine's name: pages say "shared engine NAME"
IDLE_SLOTS = 32  # a node's CPU slots that are drawn though nobody took them

_ACTIVITIES: Mapping[str, Activity] = {
    phases.SAMPLING: "sampling",
    phases.SCORING: "scoring",
    phases.UPDATING: "updating",
    phases.PUBLISHING: "publishing",
    phases.EVALUATING: "evaluating",
    phases.CHECKPOINTING: "saving",
}


def show(
    session: Session, settings: Settings, visible: frozenset[str] | None, since: datetime | None
) -> ClusterLanes:
    """The lanes of all nodes from `since` on. Of projects that are not `visible` (None: all are) nothing is
    said but that a place was taken.

    Raises InvalidInputError: `since` is in the future, or too long ago.
    """
    now = database_now(session)
    since = now - WINDOW if since is None else since
    if not now - LONGEST <= since < now:
        raise InvalidInputError.at("since", "is not within the last 8 days", "Name a later time.")
    parts = allocations.within(session, since, now, MOST_RELEASED)
    released = sum(part.end is not None for part in parts)
    beyond = allocations.count_released(session, since) - released if released == MOST_RELEASED else 0
    own = {
        part.attempt_id: part
        for part in parts
        if not part.deleted and (visible is None or part.project in visible)
    }
    phased = _phases(session, own.values(), since) if now - since <= PHASED else {}
    return ClusterLanes(
        since=since,
        until=now,
        lanes=tuple(_lanes(session, settings, visible, parts, own.keys(), since, now)),
        attempts={
            one.attempt_id: LaneAttempt(
                job=one.job_id,
                name=one.job_name,
                project=one.project,
                state=one.state,
                phases=phased.get(one.attempt_id, ()),
            )
            for one in own.values()
        },
        phases=now - since <= PHASED,
        left_out=beyond,
    )


def _lanes(
    session: Session,
    settings: Settings,
    visible: frozenset[str] | None,
    parts: Sequence[Past],
    own: Collection[str],
    since: datetime,
    now: datetime,
) -> Iterator[Lane]:
    gpus, slots = _by_place(parts)
    names = _engine_names(session, visible)
    nodes = session.scalars(select(Node).order_by(Node.id)).all()
    reports = {node.id: NodeReport.model_validate(node.report) for node in nodes}
    alive = {node.id for node in nodes if is_alive(node, settings, now)}
    gone = {node for node, _ in gpus} | set(slots)
    for node in sorted(gone | reports.keys()):
        report = reports.get(node)
        known = [gpu.uuid for gpu in report.gpus] if report else []
        uuids = [*known, *sorted(uuid for place, uuid in gpus if place == node and uuid not in known)]
        for number, uuid in enumerate(uuids):
            spans, busy = _spans(gpus.get((node, uuid), ()), own, since, now)
            yield Lane(
                node=node,
                gpu=uuid,
                slot=number,
                known=node in alive and uuid in known,
                engine=names.get((node, uuid)),
                spans=spans,
                busy_s=busy,
            )
        idle = 0 if report is None or report.gpus else min(report.cpu_slots, IDLE_SLOTS)
        rows = _rows(slots.get(node, ()))
        for number in range(max(idle, len(rows))):
            taken = rows[number] if number < len(rows) else ()
            spans, busy = _spans(taken, own, since, now)
            yield Lane(node=node, slot=number, known=node in alive, spans=spans, busy_s=busy)


def _by_place(parts: Iterable[Past]) -> tuple[dict[tuple[str, str], list[Past]], dict[str, list[Past]]]:
    """What was held, by GPU, and by node for its slots."""
    gpus: dict[tuple[str, str], list[Past]] = defaultdict(list)
    slots: dict[str, list[Past]] = defaultdict(list)
    for (_, node, gpu), part in places(parts).items():
        (slots[node] if gpu is None else gpus[node, gpu]).append(part)
    return gpus, slots


def _rows(held: Iterable[Past]) -> list[list[Past]]:
    """Slots have no names: each attempt gets the first row that is free when it starts."""
    rows: list[list[Past]] = []
    for one in sorted(held, key=lambda one: (one.start, one.attempt_id)):
        for row in rows:
            if row[-1].end is not None and row[-1].end <= one.start:
                row.append(one)
                break
        else:
            rows.append([one])
    return rows


def _spans(
    held: Iterable[Past], own: Collection[str], since: datetime, now: datetime
) -> tuple[tuple[Span, ...], float]:
    """In order of time, cut at the window's start; and how many seconds of the window they take."""
    spans, busy = [], timedelta()
    for one in sorted(held, key=lambda one: one.start):
        start, attempt = max(one.start, since), one.attempt_id
        spans.append(Span(start=start, end=one.end, attempt=attempt if attempt in own else None))
        busy += max(timedelta(), (one.end or now) - start)
    return tuple(spans), busy.total_seconds()


def _engine_names(session: Session, visible: frozenset[str] | None) -> dict[tuple[str, str], str]:
    """The shared engines that hold GPUs now; no names of those that serve none of these projects."""
    rows = session.scalars(select(EngineService))
    return {
        (row.node, uuid): row.name if engines.is_shown(row.spec["projects"], visible) else OTHERS
        for row in rows
        if row.node is not None
        for uuid in row.gpu_uuids
    }


def _phases(
    session: Session, attempts: Iterable[Past], since: datetime
) -> dict[str, tuple[tuple[float, Activity], ...]]:
    """What the newest attempts did, by attempt."""
    newest = sorted(attempts, key=lambda one: one.start, reverse=True)[:MOST_PHASED]
    events = {job_id: _events(session, job_id) for job_id in {one.job_id for one in newest}}
    return {one.attempt_id: _pieces(one, events[one.job_id], since) for one in newest}


def _events(session: Session, job_id: str) -> list[tuple[datetime, str]]:
    """The job's newest phases, in order of time."""
    query = select(JobEvent.created_at, JobEvent.data["phase"].as_string().label("phase"))
    query = query.where(JobEvent.job_id == job_id, JobEvent.kind == "state")
    rows = session.execute(query.order_by(JobEvent.seq.desc()).limit(MOST_EVENTS)).all()
    return [(row.created_at, row.phase or "") for row in reversed(rows)]


def _pieces(
    attempt: Past, events: Iterable[tuple[datetime, str]], since: datetime
) -> tuple[tuple[float, Activity], ...]:
    """The attempt's phases, with what follows itself as one."""
    pieces: list[tuple[float, Activity]] = []
    for at, phase in events:
        if at < attempt.start or (attempt.end is not None and at >= attempt.end):
            continue
        activity, offset = activity_of(phase), max(0.0, round((at - since).total_seconds(), 1))
        if pieces and pieces[-1][0] == offset:
            pieces.pop()  # both began before the window
        if not pieces or pieces[-1][1] != activity:
            pieces.append((offset, activity))
    return tuple(pieces)


def activity_of(phase: str) -> Activity:
    """What an attempt does by the words that it tells people."""
    step = phases.read_step(phase)
    if step is not None:
        return _ACTIVITIES[step.activity]
    return "saving" if phase in phases.AFTER_LAST_STEP else "preparing"
