"""The calls about sharing the cluster: quotas, the queue, who held what, and GPU-hours. See rest.py."""

from datetime import datetime
from urllib.parse import quote

import httpx

from powermean.calls import Call, Params, check, params, reads
from powermean.contracts.lanes import ClusterLanes
from powermean.contracts.sharing import ChangedQuota, Queue, QuotaChange, QuotaList, Usage, UsageBy


def quotas() -> Call[QuotaList]:
    """What the projects that the caller sees are guaranteed, may borrow and use."""
    return Call("GET", "/v1/quotas", reads(QuotaList))


def change_quota(project: str, wanted: QuotaChange) -> Call[ChangedQuota]:
    """Replace a project's quotas; refused if they changed since `wanted.version`. For administrators."""
    path = f"/v1/projects/{quote(project, safe='')}/quota"
    return Call("PUT", path, reads(ChangedQuota), json=wanted.model_dump(mode="json"))


def queue(project: str | None = None, job: str | None = None, limit: int | None = None) -> Call[Queue]:
    """The jobs that wait, in order, each with its reason; with `job` that one alone."""
    return Call("GET", "/v1/queue", reads(Queue), params(project=project, job=job, limit=limit))


def lanes(since: datetime | None = None) -> Call[ClusterLanes]:
    """Who held which GPU or CPU slot from `since` on; by default in the last hour."""
    return Call("GET", "/v1/cluster/lanes", reads(ClusterLanes), params(since=_moment(since)))


def usage(
    by: UsageBy = "project",
    start: datetime | None = None,
    end: datetime | None = None,
    project: str | None = None,
    limit: int | None = None,
) -> Call[Usage]:
    """GPU-hours and CPU-slot-hours by person, project or job; by default of the last 30 days."""
    return Call("GET", "/v1/usage", reads(Usage), _period(by, start, end, project, limit))


def usage_csv(
    by: UsageBy = "project",
    start: datetime | None = None,
    end: datetime | None = None,
    project: str | None = None,
) -> Call[str]:
    """All rows of that as CSV."""
    return Call("GET", "/v1/usage.csv", _text, _period(by, start, end, project, None))


def _period(
    by: UsageBy, start: datetime | None, end: datetime | None, project: str | None, limit: int | None
) -> Params:
    given = params(by=by, to=_moment(end), project=project, limit=limit)
    return given + tuple(("from", text) for text in [_moment(start)] if text is not None)


def _moment(value: datetime | None) -> str | None:
    return None if value is None else value.isoformat()


def _text(response: httpx.Response) -> str:
    return check(response).text
