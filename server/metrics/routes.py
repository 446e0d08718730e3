"""Metrics, trajectories and events: in from attempts, out to people."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response, status

from powermean.contracts.attempts import MetricsReport
from powermean.contracts.health import JobHealth
from powermean.contracts.metrics import METRICS, MetricInfo, MetricsHistory
from powermean.contracts.staleness import JobStaleness
from powermean.contracts.token_records import RecordedTokens
from powermean.contracts.trajectories import Trajectory, TrajectoryBatch, TrajectoryPage
from server.artefacts.store import RequestStore
from server.db.session import RequestDatabase
from server.deprecations import DEPRECATED
from server.identity.access import CurrentAttempt, CurrentPerson
from server.metrics.health import job_health
from server.metrics.history import metrics_history
from server.metrics.ingest import ingest_metrics, ingest_trajectories
from server.metrics.staleness import MAX_STEPS, job_staleness
from server.metrics.stream import EventHub, EventStream
from server.metrics.token_records import find_tokens, read_tokens
from server.metrics.trajectories import Sort, join_texts, read_trajectories, read_trajectory
from server.observability import RequestObservatory

MAX_STEP = 2**31 - 1
MAX_SEQ = 2**63 - 1

router = APIRouter(prefix="/v1", tags=["metrics"])

_STREAM = {"text/event-stream": {"schema": {"type": "string"}}}

Step = Annotated[int | None, Query(ge=0, le=MAX_STEP)]


def _hub_of(request: Request) -> EventHub:
    hub: EventHub = request.app.state.events
    return hub


@router.post(
    "/attempts/{attempt_id}/metrics",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Report metrics",
)
def post_metrics(
    attempt_id: str,
    report: MetricsReport,
    claims: CurrentAttempt,
    database: RequestDatabase,
    observatory: RequestObservatory,
) -> None:
    """Stored exactly once: the same rows again change nothing."""
    with database.write() as session:
        ingest_metrics(session, attempt_id, claims, report.rows)
    observatory.ingested.labels("metrics").inc(len(report.rows))


@router.post(
    "/attempts/{attempt_id}/trajectories",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Report a step's trajectories",
)
def post_trajectories(
    attempt_id: str,
    batch: TrajectoryBatch,
    claims: CurrentAttempt,
    database: RequestDatabase,
    observatory: RequestObservatory,
) -> None:
    """All of a step at once; the same batch again changes nothing."""
    with database.write() as session:
        ingest_trajectories(session, attempt_id, claims, batch)
    observatory.ingested.labels("trajectories").inc(len(batch.rows))


@router.get("/metric-names", summary="What the metrics mean")
def get_metric_names(person: CurrentPerson) -> dict[str, MetricInfo]:
    """Name -> level, unit and meaning."""
    return METRICS


@router.get("/jobs/{job_id}/metrics", summary="A job's metrics")
def get_metrics(
    job_id: str,
    person: CurrentPerson,
    database: RequestDatabase,
    name: Annotated[
        list[str], Query(description="Series wanted, one parameter each; none gives all.", max_length=200)
    ] = [],  # noqa: B006 - FastAPI copies it
    from_step: Step = None,
    to_step: Step = None,
    max_points: Annotated[int, Query(ge=2, le=10_000, description="Most points a series may have.")] = 1000,
) -> MetricsHistory:
    """Thinned out in the server; points that stand for several carry their extremes."""
    with database.read() as session:
        return metrics_history(session, job_id, name, from_step, to_step, max_points)


@router.get("/jobs/{job_id}/health", summary="What a job's numbers say")
def get_health(job_id: str, person: CurrentPerson, database: RequestDatabase) -> JobHealth:
    """The last steps judged by named thresholds, in plain words, the worst first; docs/health.md has them."""
    with database.read() as session:
        return job_health(session, job_id)


@router.get("/jobs/{job_id}/lag", summary="Old name of /staleness", **DEPRECATED)
@router.get("/jobs/{job_id}/staleness", summary="p and ESS by staleness")
def get_staleness(
    job_id: str,
    person: CurrentPerson,
    database: RequestDatabase,
    steps: Annotated[int, Query(ge=1, le=MAX_STEPS, description="Newest steps to look at.")] = 20,
    from_step: Annotated[
        int | None, Query(ge=0, le=MAX_STEP, description="First step, in place of `steps`.")
    ] = None,
    to_step: Annotated[
        int | None, Query(ge=0, le=MAX_STEP, description="Last step; default: the newest.")
    ] = None,
) -> JobStaleness:
    """What the objective makes of trajectories by how many weight versions they are behind."""
    with database.read() as session:
        return job_staleness(session, job_id, steps, from_step, to_step)


@router.get("/jobs/{job_id}/trajectories", summary="A step's trajectories")
def get_trajectories(
    job_id: str,
    person: CurrentPerson,
    database: RequestDatabase,
    store: RequestStore,
    step: Annotated[
        int | None, Query(ge=0, le=MAX_STEP, description="Default: the newest that has some.")
    ] = None,
    offset: Annotated[int, Query(ge=0, le=MAX_STEP)] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 64,
    sort: Sort = "index",
) -> TrajectoryPage:
    """In the order asked for; `-` is descending; p is the last update's, where it is defined."""
    with database.read() as session:
        page = read_trajectories(session, job_id, step, offset, limit, sort)
    return join_texts(page, store)


@router.get("/jobs/{job_id}/trajectories/{step}/{index}", summary="One trajectory")
def get_trajectory(
    job_id: str,
    step: Annotated[int, Path(ge=0, le=MAX_STEP)],
    index: Annotated[int, Path(ge=0, le=MAX_STEP)],
    person: CurrentPerson,
    database: RequestDatabase,
    store: RequestStore,
) -> Trajectory:
    """Its scalars, with its texts where they were recorded."""
    with database.read() as session:
        page = read_trajectory(session, job_id, step, index)
    return join_texts(page, store).items[0]


@router.get("/jobs/{job_id}/trajectories/{step}/{index}/tokens", summary="A trajectory's tokens")
def get_trajectory_tokens(
    job_id: str,
    step: Annotated[int, Path(ge=0, le=MAX_STEP)],
    index: Annotated[int, Path(ge=0, le=MAX_STEP)],
    person: CurrentPerson,
    database: RequestDatabase,
    store: RequestStore,
) -> RecordedTokens:
    """Each token with its log-ratio, weight W_t and clip in each update; `record.tokens` says how many."""
    with database.read() as session:
        stored = find_tokens(session, job_id, step, index)
    return read_tokens(stored, store)


@router.get(
    "/jobs/{job_id}/events",
    summary="A job's events, live",
    response_class=Response,  # its media type is that of errors, too
    responses={
        200: {"description": "Server-sent events: contracts Event, its seq as id.", "content": _STREAM},
        204: {"description": "To Last-Event-ID: the job has ended, and the client has everything."},
    },
)
async def get_events(
    job_id: str,
    person: CurrentPerson,
    hub: Annotated[EventHub, Depends(_hub_of)],
    after: Annotated[int, Query(ge=0, le=MAX_SEQ, description="Last event that the client has.")] = 0,
    last_event_id: Annotated[
        int | None, Header(ge=0, le=MAX_SEQ, description="As `after`; sent by browsers that reconnect.")
    ] = None,
) -> Response:
    """First all events after the last one that the client has, then those to come as they come.

    Kinds: metrics {attempt, rows}, state (the job's summary), rewind {attempt, from_step} (forget the steps
    from there on), trajectories {step, count}, checkpoint {step, attempt}. `event: end` without an id: the
    job has ended and the stream ends. A cut connection resumes by Last-Event-ID without a gap or a double.
    """
    position = after if last_event_id is None else last_event_id
    first = await hub.first_page(job_id, position)
    if last_event_id is not None and first.ended and first.start == first.upto == position > 0:
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    return EventStream(hub.stream(job_id, first))
