"""Metrics and trajectories: reported by attempts, read by people."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, Response, status
from pydantic_core import to_json
from starlette.concurrency import run_in_threadpool

from powermean.contracts.attempts import MetricsReport
from powermean.contracts.exponents import JobExponents
from powermean.contracts.health import JobHealth
from powermean.contracts.metrics import METRICS, MetricInfo, MetricsHistory
from powermean.contracts.staleness import JobStaleness
from powermean.contracts.token_records import RecordedTokens
from powermean.contracts.trajectories import Trajectory, TrajectoryBatch, TrajectoryPage
from server.db.models import MAX_INTEGER
from server.identity.callers import Caller
from server.metrics.exponents import job_exponents
from server.metrics.health import job_health
from server.metrics.history import history_fields
from server.metrics.ingest import ingest_trajectories, packed_rows
from server.metrics.reports import Report, store_alone
from server.metrics.staleness import MAX_STEPS, job_staleness
from server.metrics.token_records import find_tokens, read_tokens
from server.metrics.trajectories import Sort, join_texts, read_trajectories, read_trajectory
from server.routes.access import FirstNode, KnownCallerRoute, May
from server.routes.dependencies import (
    CallersDatabase,
    RequestDatabase,
    RequestObservatory,
    RequestReports,
    RequestStore,
)
from server.routes.deprecations import DEPRECATED

router = APIRouter(prefix="/v1", tags=["metrics"], route_class=KnownCallerRoute)

Step = Annotated[int | None, Query(ge=0, le=MAX_INTEGER)]


@router.post(
    "/attempts/{attempt_id}/metrics",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Report metrics",
)
async def post_metrics(
    attempt_id: str,
    report: MetricsReport,
    claims: FirstNode,
    database: RequestDatabase,
    reports: RequestReports,
    observatory: RequestObservatory,
) -> None:
    """Stored exactly once: sending the same rows again has no effect."""
    one = Report(attempt_id, claims, report.rows)
    if not await reports.store(one):
        await run_in_threadpool(store_alone, database, one)
    observatory.ingested.labels("metrics").inc(len(report.rows))


@router.post(
    "/attempts/{attempt_id}/trajectories",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Report a step's trajectories",
)
def post_trajectories(
    attempt_id: str,
    batch: TrajectoryBatch,
    claims: FirstNode,
    database: RequestDatabase,
    observatory: RequestObservatory,
) -> None:
    """All trajectories of a step at once; repeating the batch has no effect."""
    packed = packed_rows(batch)
    with database.write() as session:
        ingest_trajectories(session, attempt_id, claims, batch, packed)
    observatory.ingested.labels("trajectories").inc(len(batch.rows))


@router.get("/metric-names", summary="What the metrics mean")
def get_metric_names(caller: Annotated[Caller, May("self.use")]) -> dict[str, MetricInfo]:
    """Name -> level, unit and meaning."""
    return METRICS


@router.get("/jobs/{job_id}/metrics", response_model=MetricsHistory, summary="A job's metrics")
def get_metrics(
    job_id: str,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    name: Annotated[
        list[str], Query(description="Series to return, one parameter each; default: all.", max_length=200)
    ] = [],  # noqa: B006 - FastAPI copies it
    from_step: Step = None,
    to_step: Step = None,
    max_points: Annotated[int, Query(ge=2, le=10_000, description="Most points a series may have.")] = 1000,
) -> Response:
    """Downsampled by the server; merged points have their extremes."""
    with database.read() as session:
        found = history_fields(session, job_id, name, from_step, to_step, max_points)
    return Response(to_json(found, inf_nan_mode="null"), media_type="application/json")


@router.get("/jobs/{job_id}/health", summary="A job's health")
def get_health(
    job_id: str, caller: Annotated[Caller, May("job.read")], database: CallersDatabase
) -> JobHealth:
    """The last steps judged by the thresholds in docs/health.md, in plain words, worst first."""
    with database.read() as session:
        return job_health(session, job_id)


@router.get("/jobs/{job_id}/lag", summary="Old name of /staleness", **DEPRECATED)
@router.get("/jobs/{job_id}/staleness", summary="p and ESS by staleness")
def get_staleness(
    job_id: str,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    steps: Annotated[int, Query(ge=1, le=MAX_STEPS, description="Number of newest steps to include.")] = 20,
    from_step: Annotated[
        int | None, Query(ge=0, le=MAX_INTEGER, description="First step, instead of `steps`.")
    ] = None,
    to_step: Annotated[
        int | None, Query(ge=0, le=MAX_INTEGER, description="Last step; default: the newest.")
    ] = None,
) -> JobStaleness:
    """How the objective treats trajectories, by how many weight versions they are behind."""
    with database.read() as session:
        return job_staleness(session, job_id, steps, from_step, to_step)


@router.get("/jobs/{job_id}/exponents", summary="p against the clip fraction")
def get_exponents(
    job_id: str,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    from_step: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="First step.")],
    to_step: Annotated[int, Query(ge=0, le=MAX_INTEGER, description="Last step, at most 49 after it.")],
) -> JobExponents:
    """Of the trajectories of these steps: how many had which p, clip fraction and sign of the advantage."""
    with database.read() as session:
        return job_exponents(session, job_id, from_step, to_step)


@router.get("/jobs/{job_id}/trajectories", summary="A step's trajectories")
def get_trajectories(
    job_id: str,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
    step: Annotated[
        int | None, Query(ge=0, le=MAX_INTEGER, description="Default: the newest step with trajectories.")
    ] = None,
    offset: Annotated[int, Query(ge=0, le=MAX_INTEGER)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 64,
    sort: Sort = "index",
) -> TrajectoryPage:
    """In the requested order; `-` is descending; p is the last update's, if defined."""
    with database.read() as session:
        page = read_trajectories(session, job_id, step, offset, limit, sort)
    return join_texts(page, store)


@router.get("/jobs/{job_id}/trajectories/{step}/{index}", summary="One trajectory")
def get_trajectory(
    job_id: str,
    step: Annotated[int, Path(ge=0, le=MAX_INTEGER)],
    index: Annotated[int, Path(ge=0, le=MAX_INTEGER)],
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
) -> Trajectory:
    """Its scalars, and its texts if they were recorded."""
    with database.read() as session:
        page = read_trajectory(session, job_id, step, index)
    return join_texts(page, store).items[0]


@router.get("/jobs/{job_id}/trajectories/{step}/{index}/tokens", summary="A trajectory's tokens")
def get_trajectory_tokens(
    job_id: str,
    step: Annotated[int, Path(ge=0, le=MAX_INTEGER)],
    index: Annotated[int, Path(ge=0, le=MAX_INTEGER)],
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
) -> RecordedTokens:
    """Each token's log-ratio, weight W_t and clip in each update; see `record.tokens`."""
    with database.read() as session:
        stored = find_tokens(session, job_id, step, index)
    return read_tokens(stored, store)
