"""How the cluster is shared: quotas, the queue, who held what when, and GPU-hours."""

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from powermean.contracts.lanes import ClusterLanes
from powermean.contracts.sharing import ChangedQuota, Queue, QuotaChange, QuotaList, Usage, UsageBy
from server.audit.journal import note
from server.audit.reading import moment
from server.cluster import lanes, queue_listing, quotas
from server.db.session import Database
from server.identity.callers import Caller
from server.jobs import usage
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase, RequestDatabase, RequestQueue, RequestSettings

router = APIRouter(prefix="/v1", tags=["sharing"], route_class=KnownCallerRoute)

ReadsJobs = Annotated[Caller, May("job.read")]
_CSV: dict[int | str, dict[str, Any]] = {
    200: {"description": "A line for each row.", "content": {"text/csv": {"schema": {"type": "string"}}}}
}
From = Annotated[
    datetime | None, Query(alias="from", description="Not before; default: 30 days before `to`, at most 400.")
]
To = Annotated[datetime | None, Query(alias="to", description="Before; default: now.")]
Limit = Annotated[int, Query(ge=1, le=10_000)]
ProjectFilter = Annotated[str | None, Query(max_length=63, description="Of this project alone.")]


@router.get("/quotas", summary="What projects are guaranteed and use")
def get_quotas(
    caller: Annotated[Caller, May("quota.read")], database: RequestDatabase, settings: RequestSettings
) -> QuotaList:
    """Of the projects that you are in; administrators and auditors see all of them and the cluster's
    totals."""
    with database.read() as session:
        return quotas.list_quotas(session, settings, caller)


@router.put("/projects/{project}/quota", summary="Change a project's quotas")
def put_quota(
    project: str,
    wanted: QuotaChange,
    caller: Annotated[Caller, May("quota.change")],
    database: RequestDatabase,
    settings: RequestSettings,
) -> ChangedQuota:
    """All of them at once. 409: somebody else changed them since `version`; `fields` has the present values.

    Quotas may add up to more than the connected nodes have; `warnings` says so. Administrators only.
    """
    with database.write() as session:
        changed = quotas.change(session, settings, project, wanted)
        values = wanted.model_dump(exclude={"version"})
        note(**{name: "none" if value is None else str(value) for name, value in values.items()})
        return changed


@router.get("/queue", summary="The jobs that wait, and why")
def get_queue(
    caller: ReadsJobs,
    queue: RequestQueue,
    database: CallersDatabase,
    project: ProjectFilter = None,
    job: Annotated[str | None, Query(max_length=32, description="This job alone.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Queue:
    """In order, each with its reason, what would help and, where one can be given, an estimate of its start.

    Jobs of projects that you don't see are only counted. 404: the job that you ask for doesn't wait.
    """
    whys = queue.waiting()
    with database.read() as session:
        return queue_listing.list_queue(session, whys, project=project, job=job, limit=limit)


@router.get("/cluster/lanes", summary="Who held which GPU and CPU slot when")
def get_lanes(
    caller: Annotated[Caller, May("cluster.read")],
    database: RequestDatabase,
    settings: RequestSettings,
    since: Annotated[
        datetime | None, Query(description="Within the last 8 days; default: an hour ago.")
    ] = None,
) -> ClusterLanes:
    """A lane for each GPU, and for each CPU slot of nodes without GPUs. What attempts did comes with windows
    of an hour. Of projects that you don't see, only that a place was taken."""
    with database.read() as session:
        return lanes.show(session, settings, caller.visible, moment(since, "since"))


@router.get("/usage", summary="GPU-hours and CPU-slot-hours")
def get_usage(
    caller: ReadsJobs,
    database: RequestDatabase,
    by: UsageBy = "project",
    start: From = None,
    end: To = None,
    project: ProjectFilter = None,
    limit: Limit = 1000,
) -> Usage:
    """What your projects held in a period, by person, project or job; jobs that were deleted count too."""
    return _usage(caller, database, by, start, end, project, limit)


@router.get(
    "/usage.csv",
    summary="GPU-hours and CPU-slot-hours as CSV",
    response_class=Response,
    responses=_CSV,
)
def get_usage_csv(
    caller: ReadsJobs,
    database: RequestDatabase,
    by: UsageBy = "project",
    start: From = None,
    end: To = None,
    project: ProjectFilter = None,
) -> Response:
    """All rows, for spreadsheets."""
    found = _usage(caller, database, by, start, end, project, None)
    headers = {"Content-Disposition": f'attachment; filename="usage-by-{by}.csv"'}
    return Response(usage.as_csv(found), media_type="text/csv; charset=utf-8", headers=headers)


def _usage(
    caller: Caller,
    database: Database,
    by: UsageBy,
    start: datetime | None,
    end: datetime | None,
    project: str | None,
    limit: int | None,
) -> Usage:
    since, until = moment(start, "from"), moment(end, "to")
    with database.read() as session:
        return usage.report(session, caller.visible, by, start=since, end=until, project=project, limit=limit)
