"""A stand-in for the REST API: jobs in memory, by the contracts, with a door for tests to feed them."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import Request

from powermean.contracts.api import (
    AttemptView,
    CheckpointView,
    ErrorBody,
    Job,
    JobState,
    JobSummary,
    NodeDrain,
    NodeSample,
    NodeView,
)
from powermean.contracts.attempts import AllocationView
from powermean.contracts.engines import EngineService
from powermean.contracts.health import Finding
from powermean.contracts.identity import Me, Project
from powermean.contracts.job import JobSpec
from powermean.contracts.lanes import ClusterLanes
from powermean.contracts.metrics import MetricsHistory, Point, Series
from powermean.contracts.names import session_cookie
from powermean.contracts.pools import PoolView
from powermean.contracts.replays import Replay, ReplayResult
from powermean.contracts.sharing import Queue, QuotaList, Usage, UsageRow
from powermean.contracts.staleness import JobStaleness
from powermean.contracts.storage import ProjectStorage, Retention
from powermean.contracts.token_records import RecordedTokens
from powermean.contracts.trajectories import Trajectory
from tests.support.sample_people import me, project

EMPTY = ProjectStorage(project="default", bytes=0, over_limit=False, uses=(), largest=())
COOKIE = "powermean_session"
KEY = "pm_key"
CODE = "code-1"
PART = 64 * 1024  # most of a log in one answer
TOO_EARLY = Finding(code="too_few_steps", level="ok", message="0 of the 5 steps")
NONE_STALE = JobStaleness(first_step=None, last_step=None, rows=())
NOW = datetime(2026, 1, 5, 12, 0, tzinfo=UTC)
NO_LANES = ClusterLanes(since=NOW - timedelta(hours=1), until=NOW, lanes=(), attempts={}, phases=True)
NOTHING = UsageRow(key="total", gpu_hours=0, cpu_slot_hours=0, jobs=0)
NO_USAGE = Usage(start=NOW - timedelta(days=30), end=NOW, by="project", rows=(), total=NOTHING)
SPEC: dict[str, Any] = {
    "name": "sorting",
    "model": {"name": "HuggingFaceTB/SmolLM2-135M-Instruct"},
    "data": {"kind": "arithmetic"},
    "training": {"steps": 12},
}


class RefusalError(Exception):
    """An answer that is not a success."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        super().__init__(body.message)
        self.status = status
        self.body = body


@dataclass
class FakeJob:
    """One job and all that is known of it."""

    job: Job
    points: dict[tuple[str, int, int], float | None] = field(default_factory=dict)
    events: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    trajectories: dict[int, list[Trajectory]] = field(default_factory=dict)
    tokens: dict[tuple[int, int], RecordedTokens] = field(default_factory=dict)
    checkpoints: list[CheckpointView] = field(default_factory=list)
    logs: dict[int, str] = field(default_factory=dict)
    other_logs: dict[tuple[int, int], str] = field(default_factory=dict)  # of attempts' nodes but the first
    finding: Finding = TOO_EARLY
    staleness: JobStaleness = NONE_STALE
    text: str = ""

    def update(self, **changes: Any) -> None:
        self.job = self.job.model_copy(update=changes)

    def event(self, kind: str, data: dict[str, Any]) -> None:
        self.update(seq=self.job.seq + 1)
        self.events.append((self.job.seq, kind, data))

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        """Rows {step, update, name, value}, as an attempt reports them."""
        for row in rows:
            self.points[row["name"], row["step"], row["update"]] = row["value"]
            if row["name"] == "reward":
                self.update(step=row["step"], last_reward=row["value"])
        self.event("metrics", {"attempt": self.job.attempt, "rows": rows})

    def set_state(self, state: JobState, **changes: Any) -> None:
        self.update(state=state, **changes)
        summary = JobSummary(**{name: getattr(self.job, name) for name in JobSummary.model_fields})
        self.event("state", summary.model_dump(mode="json"))

    def rewind(self, from_step: int) -> None:
        """A new attempt starts at `from_step`."""
        number = self.job.attempt + 1
        self.points = {key: value for key, value in self.points.items() if key[1] < from_step}
        self.update(attempt=number, attempts=(*self.job.attempts, attempt(self.job.id, number, from_step)))
        self.event("rewind", {"attempt": number, "from_step": from_step})

    def history(self, names: list[str], from_step: int, to_step: int) -> MetricsHistory:
        series = []
        for name in names or sorted({key[0] for key in self.points}):
            keys = sorted(key for key in self.points if key[0] == name and from_step <= key[1] <= to_step)
            points = tuple(Point(step=s, update=u, value=self.points[n, s, u]) for n, s, u in keys)
            series.append(Series(name=name, points=points))
        return MetricsHistory(series=tuple(series), seq=self.job.seq)


def attempt(job_id: str, number: int, first_step: int) -> AttemptView:
    return AttemptView(
        id=f"{job_id}.{number}",
        number=number,
        state="running",
        first_step=first_step,
        allocations=(AllocationView(role="trainer", node_id="node-a"),),
        created_at=NOW,
    )


@dataclass
class FakeApi:
    """Everything behind the application that `app` builds."""

    jobs: dict[str, FakeJob] = field(default_factory=dict)
    nodes: list[NodeView] = field(default_factory=list)
    samples: list[NodeSample] = field(default_factory=list)  # of every node
    closings: list[tuple[str, str, NodeDrain | None]] = field(default_factory=list)  # of nodes, and openings
    engines: list[EngineService] = field(default_factory=list)
    replays: dict[str, Replay] = field(default_factory=dict)
    results: dict[str, ReplayResult] = field(default_factory=dict)  # of the replays that are done
    asked: list[dict[str, Any]] = field(default_factory=list)  # replays asked for
    keys_seen: list[str] = field(default_factory=list)
    sorts: list[str] = field(default_factory=list)  # orders of the list that were asked for
    me: Me = field(default_factory=me)
    projects: list[Project] = field(default_factory=lambda: [project("default", role="admin")])
    storage: ProjectStorage = EMPTY
    retention: Retention = field(default_factory=Retention)
    deleted: list[str] = field(default_factory=list)  # paths below /v1/
    refuses_deletion: str = ""  # why
    queue: Queue = field(default_factory=lambda: Queue(items=(), others=0))
    pools: list[PoolView] = field(default_factory=list)
    quotas: QuotaList = field(default_factory=lambda: QuotaList(items=()))
    changed_quotas: list[dict[str, Any]] = field(default_factory=list)  # as they were sent
    lanes: ClusterLanes = NO_LANES
    usage: Usage = NO_USAGE
    cut: int = 0  # raised to end all open event streams

    def add_job(self, job_id: str = "job-a", spec: dict[str, Any] | None = None, **changes: Any) -> FakeJob:
        checked = JobSpec.model_validate(spec or SPEC)
        job = Job(
            id=job_id,
            name=checked.name,
            state=JobState.RUNNING,
            algorithm=checked.algorithm.name,
            model=checked.model.name or checked.model.folder or "",
            step=0,
            total_steps=checked.training.steps,
            attempt=1,
            phase="sampling",
            created_at=NOW,
            started_at=NOW + timedelta(seconds=5),
            spec=checked,
            attempts=(attempt(job_id, 1, 0),),
            seconds_left=75.0,
        )
        self.jobs[job_id] = FakeJob(job.model_copy(update=changes), text=json.dumps(spec or SPEC))
        return self.jobs[job_id]

    def find(self, job_id: str) -> FakeJob:
        if job_id not in self.jobs:
            raise RefusalError(
                404,
                ErrorBody(
                    code="not_found", message=f"no job {job_id}", remedy="GET /v1/jobs lists the jobs."
                ),
            )
        return self.jobs[job_id]


def signed_in(request: Request) -> None:
    """Raises RefusalError unless a browser's session is open, and the request comes from a page of ours."""
    if request.cookies.get(session_cookie(request.headers["host"])) != "open":
        raise RefusalError(401, ErrorBody(code="unauthenticated", message="this needs a key"))
    if (
        request.method != "GET"
        and request.headers.get("origin", "").split("//")[-1] != request.headers["host"]
    ):
        raise RefusalError(403, ErrorBody(code="forbidden", message="only from this service's own pages"))
