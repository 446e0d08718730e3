"""The list of jobs."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.api import is_fragment
from dashboard.rendering import page
from dashboard.viewer import remember, viewer_of
from powermean.async_client import AsyncClient
from powermean.contracts.api import ErrorBody, JobSort, JobState, JobSummary
from powermean.contracts.metrics import WHOLE_STEP, MetricsHistory
from powermean.rest import ApiError

PAGE_SIZE = 25
NEWEST: JobSort = "-created"
Direction = Literal["ascending", "descending"]
_REMEMBERED = 2000
_MEANS = ("p/mean", "p/last_pass/mean")
_COUNTS = ("p/last_pass/defined", "p/last_pass/undefined")


@dataclass(frozen=True)
class Exponent:
    """The mean p of a step's last pass, and how many of its trajectories have one (None: not recorded)."""

    value: float
    step: int
    defined: int | None = None
    trajectories: int | None = None


def newest_exponent(history: MetricsHistory) -> Exponent | None:
    """The newest of the history's p/mean and p/last_pass/*; None if there is no p."""
    points = {
        (series.name, point.step, point.update): point.value
        for series in history.series
        for point in series.points
        if point.value is not None
    }
    newest = max(((step, update) for name, step, update in points if name in _MEANS), default=None)
    if newest is None:
        return None
    step = newest[0]
    value = points.get(("p/last_pass/mean", step, WHOLE_STEP))
    if value is None:
        return Exponent(points["p/mean", *newest], step)
    defined = int(points["p/last_pass/defined", step, WHOLE_STEP])
    return Exponent(value, step, defined, defined + int(points["p/last_pass/undefined", step, WHOLE_STEP]))


class _FinalExponents:
    """Cache of the last p of ended jobs, which no longer changes. Bounded; the oldest go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, Exponent | None] = OrderedDict()

    def get(self, job: JobSummary) -> tuple[bool, Exponent | None]:
        return job.id in self._known, self._known.get(job.id)

    def keep(self, job: JobSummary, value: Exponent | None) -> None:
        if job.state.final:
            self._known[job.id] = value
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)


async def _exponent(client: AsyncClient, job: JobSummary, final: _FinalExponents) -> Exponent | None:
    """The job's newest p; None if there is none yet or the objective has none."""
    if job.step == 0:
        return None
    known, value = final.get(job)
    if known:
        return value
    try:
        history = await client.metrics(job.id, [*_MEANS, *_COUNTS], from_step=max(0, job.step - 1))
    except ApiError:  # one job's numbers must not break the list of jobs
        return None
    value = newest_exponent(history)
    final.keep(job, value)
    return value


async def _exponents(
    request: Request, client: AsyncClient, jobs: Sequence[JobSummary]
) -> dict[str, Exponent | None]:
    state = request.app.state
    if not hasattr(state, "final_exponents"):
        state.final_exponents = _FinalExponents()
    values = await asyncio.gather(*(_exponent(client, job, state.final_exponents) for job in jobs))
    return {job.id: value for job, value in zip(jobs, values, strict=True)}


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
        exponents = await _exponents(request, client, jobs.items)
    # A page that stays open shows its own project, whatever is chosen in another.
    place = {"project": project or ""} if viewer.several else {}
    kept = place | {k: v for k, v in (("state", state), ("name", name)) if v}
    order = {"sort": sort} if sort != NEWEST else {}
    here = kept | order | ({"cursor": cursor} if cursor else {})
    answer = page(
        request,
        "fragments/jobs_table.html" if is_fragment(request) else "jobs.html",
        jobs=jobs,
        exponents=exponents,
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
