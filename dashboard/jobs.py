"""The list of jobs."""

from dataclasses import dataclass
from typing import Literal, cast, get_args

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.api import is_fragment
from dashboard.rendering import page
from dashboard.viewer import remember, viewer_of
from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody, JobSort, JobState

PAGE_SIZE = 25
NEWEST: JobSort = "-created"
Direction = Literal["ascending", "descending"]


@dataclass(frozen=True)
class Order:
    """How a column's heading sorts the list: where its link goes, and what the list is sorted by now."""

    sort: JobSort
    now: Direction | None


def orders(sort: JobSort) -> dict[str, Order]:
    """By column: a second click turns the order round; numbers and times start with the largest."""
    found = {}
    for column in ("name", "state", "reward", "held_out", "owner", "created"):
        first = f"-{column}" if column in ("reward", "held_out", "created") else column
        other = column if first.startswith("-") else f"-{column}"
        now: Direction | None = None
        if sort in (first, other):
            now = "descending" if sort.startswith("-") else "ascending"
        found[column] = Order(cast(JobSort, other if sort == first else first), now)
    return found


async def jobs_page(request: Request) -> Response:
    """GET /?project=&state=&name=&sort=&cursor=. htmx polls only the table.

    A project in the address is the chosen one from then on; an empty one: all.
    """
    query = request.query_params
    sort = cast(JobSort, query.get("sort") or NEWEST)
    if sort not in get_args(JobSort):
        raise HTTPException(400, f"sort must be one of {', '.join(get_args(JobSort))}")
    state, name, cursor = query.get("state") or None, query.get("name") or None, query.get("cursor") or None
    if state is not None and state not in set(JobState):
        raise HTTPException(400, f"state must be one of {', '.join(JobState)}")
    viewer = await viewer_of(request)
    wanted, project = query.get("project"), viewer.chosen
    if wanted and wanted != project and viewer.role(wanted) is None:
        message = f"You see no project {wanted[:63]}."
        raise ApiError(
            404, ErrorBody(code="not_found", message=message, remedy="GET /v1/projects lists yours.")
        )
    async with api.client(request) as client:
        jobs = await client.list_jobs(
            state=state, name=name, project=project, cursor=cursor, limit=PAGE_SIZE, sort=sort
        )
    # A page that stays open shows its own project, whatever is chosen in another.
    place = {"project": project or ""} if viewer.several else {}
    kept = place | {k: v for k, v in (("state", state), ("name", name)) if v}
    order = {"sort": sort} if sort != NEWEST else {}
    here = kept | order | ({"cursor": cursor} if cursor else {})
    answer = page(
        request,
        "fragments/jobs_table.html" if is_fragment(request) else "jobs.html",
        jobs=jobs,
        states=[s.value for s in JobState],
        state=state,
        name=name,
        cursor=cursor,
        sort=sort,
        kept=kept,
        here=here,
        orders=orders(sort),
    )
    if wanted is not None and viewer.several and not is_fragment(request):
        remember(request, answer, project)
    return answer
