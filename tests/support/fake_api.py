"""A stand-in for the REST API: jobs in memory, by the contracts, with a door for tests to feed them."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError

from powermean.contracts.api import (
    AttemptView,
    CheckpointList,
    CheckpointView,
    Dataset,
    ErrorBody,
    ErrorResponse,
    FieldError,
    Job,
    JobPage,
    JobState,
    JobSummary,
    LogText,
    NodeDrain,
    NodeList,
    NodeSample,
    NodeSamples,
    NodeView,
    SpecSource,
)
from powermean.contracts.attempts import AllocationView
from powermean.contracts.engines import EngineService, EngineServiceList
from powermean.contracts.exponents import JobExponents
from powermean.contracts.health import Finding, JobHealth
from powermean.contracts.identity import Me, Project, ProjectList
from powermean.contracts.job import JobSpec
from powermean.contracts.lanes import ClusterLanes
from powermean.contracts.metrics import METRICS, MetricsHistory, Point, Series
from powermean.contracts.names import session_cookie
from powermean.contracts.pools import PoolList, PoolView
from powermean.contracts.priorities import PriorityChange, PriorityClass, PriorityClassList
from powermean.contracts.replays import Replay, ReplayList, ReplayResult
from powermean.contracts.sharing import ProjectQuota, Queue, QuotaList, Usage, UsageRow
from powermean.contracts.signin import SessionView, SignInMethod, SignInWays
from powermean.contracts.staleness import JobStaleness
from powermean.contracts.storage import ProjectStorage, Retention
from powermean.contracts.token_records import RecordedTokens
from powermean.contracts.trajectories import Trajectory, TrajectoryPage
from powermean.spec_yaml import SpecTextError, read_spec
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


def _refusal(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RefusalError)
    return JSONResponse(ErrorResponse(error=error.body).model_dump(), status_code=error.status)


def _signed_in(request: Request) -> None:
    if request.cookies.get(session_cookie(request.headers["host"])) != "open":
        raise RefusalError(401, ErrorBody(code="unauthenticated", message="this needs a key"))
    if (
        request.method != "GET"
        and request.headers.get("origin", "").split("//")[-1] != request.headers["host"]
    ):
        raise RefusalError(403, ErrorBody(code="forbidden", message="only from this service's own pages"))


def create_api(api: FakeApi) -> FastAPI:
    """The REST API over `api`."""
    app = FastAPI()
    app.add_exception_handler(RefusalError, _refusal)
    _sessions(app)
    _people(app, api)
    _jobs(app, api)
    _records(app, api)
    _replays(app, api)
    _storage(app, api)
    _sharing(app, api)
    return app


def _sharing(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/queue")
    def queue(request: Request, job: str | None = None) -> Queue:
        _signed_in(request)
        found = tuple(one for one in api.queue.items if job in (None, one.id))
        if job is not None and not found:
            raise RefusalError(404, ErrorBody(code="not_found", message=f"job {job} is not in the queue"))
        return api.queue.model_copy(update={"items": found})

    @app.get("/v1/pools")
    def pools(request: Request) -> PoolList:
        _signed_in(request)
        return PoolList(items=tuple(api.pools))

    @app.get("/v1/quotas")
    def quotas(request: Request) -> QuotaList:
        _signed_in(request)
        return api.quotas

    @app.put("/v1/projects/{project}/quota")
    async def change_quota(request: Request, project: str) -> ProjectQuota:
        _signed_in(request)
        (quota,) = (one for one in api.quotas.items if one.project == project)
        wanted = await request.json()
        if wanted["version"] != quota.version:
            now = FieldError(path="version", message=f"is now {quota.version}")
            raise RefusalError(409, ErrorBody(code="conflict", message="changed meanwhile", fields=(now,)))
        api.changed_quotas.append(wanted)
        return quota

    @app.get("/v1/projects/{project}")
    def get_project(request: Request, project: str) -> Project:
        _signed_in(request)
        return next(one for one in api.projects if one.name == project)

    @app.get("/v1/cluster/lanes")
    def lanes(request: Request) -> ClusterLanes:
        _signed_in(request)
        return api.lanes

    @app.get("/v1/usage")
    def usage(request: Request) -> Usage:
        _signed_in(request)
        return api.usage


def _storage(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/me")
    def me(request: Request) -> dict[str, Any]:
        _signed_in(request)
        who = {"id": "person-1", "name": "Ada", "kind": "person", "active": True}
        return who | {"default_project": "default", "created_at": NOW.isoformat()}

    @app.get("/v1/projects/{project}/storage")
    def storage(request: Request, project: str) -> ProjectStorage:
        _signed_in(request)
        return api.storage

    @app.get("/v1/projects/{project}/retention")
    def retention(request: Request, project: str) -> Retention:
        _signed_in(request)
        return api.retention

    @app.get("/v1/datasets/{dataset_id}")
    def dataset(request: Request, dataset_id: str) -> Dataset:
        _signed_in(request)
        return Dataset(
            id=dataset_id,
            name="sums",
            rows=1,
            fields=(),
            sha256="0" * 64,
            size=1,
            project="default",
            created_at=NOW,
        )

    @app.delete("/v1/{path:path}", status_code=204)
    def delete(request: Request, path: str) -> None:
        _signed_in(request)
        if api.refuses_deletion:
            raise RefusalError(409, ErrorBody(code="conflict", message=api.refuses_deletion))
        api.deleted.append(path)


def _sessions(app: FastAPI) -> None:
    @app.post("/v1/sessions", status_code=201)
    async def open_session(request: Request, response: Response) -> SessionView:
        proof = await request.json()
        if proof not in ({"key": KEY}, {"code": CODE}):
            body = ErrorBody(code="unauthenticated", message="this key is not known", remedy="Ask for a key.")
            raise RefusalError(401, body)
        response.set_cookie(session_cookie(request.headers["host"]), "open", httponly=True, samesite="strict")
        method: SignInMethod = "key" if "key" in proof else "code"
        return SessionView(name="Ada", role="member", method=method, expires_at=NOW)

    @app.get("/v1/sign-in")
    def sign_in_ways() -> SignInWays:
        return SignInWays(oidc=None, passwords=False)

    @app.delete("/v1/sessions", status_code=204)
    def close_session(request: Request, response: Response) -> None:
        _signed_in(request)
        response.delete_cookie(session_cookie(request.headers["host"]))


def _people(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/me")
    def get_me(request: Request) -> Me:
        _signed_in(request)
        return api.me

    @app.get("/v1/projects/{name}")
    def get_project(request: Request, name: str) -> Project:
        _signed_in(request)
        found = next((one for one in api.projects if one.name == name), None)
        if found is None:
            raise RefusalError(404, ErrorBody(code="not_found", message=f"no project {name}"))
        return found

    @app.get("/v1/projects")
    def list_projects(request: Request) -> ProjectList:
        _signed_in(request)
        return ProjectList(items=tuple(api.projects))


def _create(api: FakeApi, request: Request, given: object) -> Job:
    try:
        spec = JobSpec.model_validate(given)
    except ValidationError as error:
        fields = tuple(
            FieldError(path=".".join(map(str, e["loc"])), message=e["msg"], remedy="Mend it.")
            for e in error.errors()
        )
        raise RefusalError(
            422,
            ErrorBody(
                code="invalid",
                message=f"{fields[0].path}: {fields[0].message}"
                + (f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""),
                fields=fields,
            ),
        ) from error
    key = request.headers["idempotency-key"]
    if key not in api.keys_seen:
        api.keys_seen.append(key)
        api.add_job(f"job-new{len(api.keys_seen)}", spec.model_dump(mode="json"))
    return api.jobs[f"job-new{api.keys_seen.index(key) + 1}"].job


def _jobs(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/jobs")
    def list_jobs(
        request: Request,
        state: str | None = None,
        name: str | None = None,
        cursor: str = "0",
        limit: int = 50,
        sort: str = "-created",
    ) -> JobPage:
        _signed_in(request)
        api.sorts.append(sort)
        found = [fake.job for fake in api.jobs.values() if state in (None, fake.job.state)]
        found = [job for job in found if name is None or name in job.name]
        start = int(cursor)
        items = tuple(
            JobSummary(**{n: getattr(job, n) for n in JobSummary.model_fields})
            for job in found[start : start + limit]
        )
        return JobPage(items=items, next=str(start + limit) if start + limit < len(found) else None)

    @app.post("/v1/jobs", status_code=202)
    async def create_job(request: Request) -> Job:
        _signed_in(request)
        return _create(api, request, await request.json())

    @app.post("/v1/jobs/text", status_code=202)
    def create_job_from_text(request: Request, source: SpecSource) -> Job:
        _signed_in(request)
        try:
            given = read_spec(source.text).fields
        except SpecTextError as error:
            body = ErrorBody(code="unreadable_spec", message=error.message, remedy=error.remedy)
            raise RefusalError(422, body) from error
        made = _create(api, request, given)
        api.jobs[made.id].text = source.text
        return made

    @app.get("/v1/jobs/{job_id}/text")
    def job_text(request: Request, job_id: str) -> SpecSource:
        _signed_in(request)
        return SpecSource(text=api.find(job_id).text)

    @app.get("/v1/jobs/{job_id}")
    def get_job(request: Request, job_id: str) -> Job:
        _signed_in(request)
        return api.find(job_id).job

    @app.post("/v1/jobs/{job_id}/cancel")
    def cancel_job(request: Request, job_id: str) -> Job:
        _signed_in(request)
        fake = api.find(job_id)
        fake.set_state(JobState.CANCELLED, cancel_requested=True, finished_at=NOW + timedelta(minutes=3))
        return fake.job

    @app.post("/v1/jobs/{job_id}/pause")
    def pause_job(request: Request, job_id: str) -> Job:
        _signed_in(request)
        fake = api.find(job_id)
        fake.set_state(fake.job.state, pause_requested=True)
        return fake.job

    @app.post("/v1/jobs/{job_id}/resume")
    def resume_job(request: Request, job_id: str) -> Job:
        _signed_in(request)
        fake = api.find(job_id)
        fake.set_state(JobState.QUEUED)
        return fake.job

    @app.post("/v1/jobs/{job_id}/priority")
    def set_priority(request: Request, job_id: str, wanted: PriorityChange) -> Job:
        _signed_in(request)
        if wanted.priority == "high":
            raise RefusalError(403, ErrorBody(code="forbidden", message="high needs a maintainer"))
        api.find(job_id).job = api.find(job_id).job.model_copy(update={"priority": wanted.priority})
        return api.find(job_id).job

    @app.get("/v1/priorities")
    def priorities(request: Request) -> PriorityClassList:
        _signed_in(request)
        ranks = (("high", 100, "maintainer"), ("normal", 0, "member"), ("low", -100, "member"))
        return PriorityClassList(
            items=tuple(PriorityClass(name=name, value=value, role=role) for name, value, role in ranks)
        )

    @app.get("/v1/nodes")
    def nodes(request: Request) -> NodeList:
        _signed_in(request)
        return NodeList(items=tuple(api.nodes))

    @app.get("/v1/nodes/{node_id}")
    def get_node(request: Request, node_id: str) -> NodeView:
        _signed_in(request)
        return next(node for node in api.nodes if node.id == node_id)

    @app.get("/v1/nodes/{node_id}/samples")
    def samples(node_id: str) -> NodeSamples:
        return NodeSamples(every_s=10, items=tuple(api.samples))

    @app.post("/v1/nodes/{node_id}/{what}")
    def change_node(request: Request, node_id: str, what: str, asked: NodeDrain | None = None) -> NodeView:
        _signed_in(request)
        if asked is not None and asked.at is not None and asked.at < NOW:
            raise RefusalError(422, ErrorBody(code="invalid", message="at: is past"))
        api.closings.append((node_id, what, asked))
        return next(node for node in api.nodes if node.id == node_id)

    @app.get("/v1/engines")
    def engines(request: Request) -> EngineServiceList:
        _signed_in(request)
        return EngineServiceList(items=tuple(api.engines))


def _records(app: FastAPI, api: FakeApi) -> None:
    @app.get("/v1/metric-names")
    def metric_names(request: Request) -> dict[str, Any]:
        _signed_in(request)
        return {name: info.model_dump() for name, info in METRICS.items()}

    @app.get("/v1/jobs/{job_id}/metrics")
    def metrics(request: Request, job_id: str, from_step: int = 0, to_step: int = 2**31) -> MetricsHistory:
        _signed_in(request)
        return api.find(job_id).history(request.query_params.getlist("name"), from_step, to_step)

    @app.get("/v1/jobs/{job_id}/health")
    def health(request: Request, job_id: str) -> JobHealth:
        _signed_in(request)
        found = api.find(job_id).finding
        return JobHealth(level=found.level, first_step=None, last_step=None, findings=(found,))

    @app.get("/v1/jobs/{job_id}/exponents")
    def exponents(request: Request, job_id: str) -> JobExponents:
        _signed_in(request)
        api.find(job_id)
        return JobExponents(steps=(), rows=())

    @app.get("/v1/jobs/{job_id}/staleness")
    def staleness(request: Request, job_id: str) -> JobStaleness:
        _signed_in(request)
        return api.find(job_id).staleness

    @app.get("/v1/jobs/{job_id}/trajectories")
    def trajectories(
        request: Request,
        job_id: str,
        step: int | None = None,
        offset: int = 0,
        limit: int = 64,
        sort: str = "index",
    ) -> TrajectoryPage:
        _signed_in(request)
        fake = api.find(job_id)
        steps = tuple(sorted(fake.trajectories))
        if step is None and not steps:
            return TrajectoryPage(step=0, items=(), total=0, steps=())
        chosen = steps[-1] if step is None else step
        if chosen not in fake.trajectories:
            raise RefusalError(404, ErrorBody(code="not_found", message=f"step {chosen} has no trajectories"))
        items = fake.trajectories[chosen]
        if sort != "index":
            items = sorted(items, key=lambda one: _rank(one, sort.lstrip("-")), reverse=sort.startswith("-"))
        return TrajectoryPage(
            step=chosen, items=tuple(items[offset : offset + limit]), total=len(items), steps=steps
        )

    @app.get("/v1/jobs/{job_id}/trajectories/{step}/{index}/tokens")
    def tokens(request: Request, job_id: str, step: int, index: int) -> RecordedTokens:
        _signed_in(request)
        fake = api.find(job_id)
        if (step, index) not in fake.tokens:
            raise RefusalError(
                404, ErrorBody(code="not_found", message=f"no tokens of {step}/{index} are left")
            )
        return fake.tokens[step, index]

    @app.get("/v1/jobs/{job_id}/checkpoints")
    def checkpoints(request: Request, job_id: str) -> CheckpointList:
        _signed_in(request)
        return CheckpointList(items=tuple(api.find(job_id).checkpoints))

    @app.get("/v1/jobs/{job_id}/logs")
    def logs(
        request: Request, job_id: str, attempt: int | None = None, offset: int = 0, node_rank: int = 0
    ) -> LogText:
        _signed_in(request)
        fake = api.find(job_id)
        number = attempt or fake.job.attempt
        text = fake.other_logs.get((number, node_rank), "") if node_rank else fake.logs.get(number, "")
        part = text[offset : offset + PART]
        return LogText(
            attempt=number, node_rank=node_rank, offset=offset, next_offset=offset + len(part), text=part
        )

    @app.get("/v1/jobs/{job_id}/events")
    async def events(request: Request, job_id: str, after: int = 0) -> StreamingResponse:
        _signed_in(request)
        seq = int(request.headers.get("last-event-id", after))
        return StreamingResponse(_frames(api, api.find(job_id), seq), media_type="text/event-stream")


def _replays(app: FastAPI, api: FakeApi) -> None:
    @app.post("/v1/jobs/{job_id}/replays", status_code=202)
    async def ask(request: Request, job_id: str) -> Replay:
        _signed_in(request)
        api.find(job_id)
        api.asked.append(await request.json())
        if api.asked[-1]["algorithm"] == "nonsense":
            wrong = FieldError(path="algorithm", message="no objective 'nonsense'", remedy="One of pmpo.")
            raise RefusalError(422, ErrorBody(code="invalid", message=wrong.message, fields=(wrong,)))
        return next(iter(api.replays.values()))

    @app.get("/v1/jobs/{job_id}/replays")
    def list_replays(request: Request, job_id: str, step: int | None = None) -> ReplayList:
        _signed_in(request)
        found = [one for one in api.replays.values() if one.job_id == job_id and step in (None, one.step)]
        return ReplayList(items=tuple(found))

    @app.get("/v1/jobs/{job_id}/replays/{replay_id}")
    def get_replay(request: Request, job_id: str, replay_id: str) -> Replay:
        _signed_in(request)
        if replay_id not in api.replays:
            raise RefusalError(404, ErrorBody(code="not_found", message=f"no replay {replay_id}"))
        return api.replays[replay_id]

    @app.get("/v1/jobs/{job_id}/replays/{replay_id}/result")
    def get_result(request: Request, job_id: str, replay_id: str) -> ReplayResult:
        _signed_in(request)
        return api.results[replay_id]


def _rank(item: Trajectory, name: str) -> float:
    if name == "p":
        return next((u.p for u in reversed(item.updates) if u.p is not None), 2.0)
    return float(getattr(item, name))


async def _frames(api: FakeApi, fake: FakeJob, seq: int) -> AsyncIterator[str]:
    cut = api.cut
    yield "retry: 500\n\n"
    while api.cut == cut:
        for number, kind, data in fake.events:
            if number > seq:
                seq = number
                yield f"id: {number}\nevent: {kind}\ndata: {json.dumps(data)}\n\n"
        if fake.job.state.final:
            yield "event: end\ndata: {}\n\n"
            return
        await asyncio.sleep(0.05)
