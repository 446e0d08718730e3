"""The list of jobs."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.api import is_fragment
from dashboard.rendering import page
from powermean.async_client import AsyncClient
from powermean.contracts.api import JobState, JobSummary
from powermean.rest import ApiError

PAGE_SIZE = 25
_REMEMBERED = 2000


class _FinalExponents:
    """Cache of the last p of ended jobs, which no longer changes. Bounded; the oldest go first."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, float | None] = OrderedDict()

    def get(self, job: JobSummary) -> tuple[bool, float | None]:
        return job.id in self._known, self._known.get(job.id)

    def keep(self, job: JobSummary, value: float | None) -> None:
        if job.state.final:
            self._known[job.id] = value
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)


async def _exponent(client: AsyncClient, job: JobSummary, final: _FinalExponents) -> float | None:
    """The job's newest p; None if there is none yet or the objective has none."""
    if job.step == 0:
        return None
    known, value = final.get(job)
    if known:
        return value
    try:
        history = await client.metrics(job.id, ["p/mean"], from_step=max(0, job.step - 1))
    except ApiError:  # one job's numbers must not break the list of jobs
        return None
    points = [p for series in history.series for p in series.points if p.value is not None]
    value = max(points, key=lambda p: (p.step, p.update)).value if points else None
    final.keep(job, value)
    return value


async def _exponents(
    request: Request, client: AsyncClient, jobs: Sequence[JobSummary]
) -> dict[str, float | None]:
    state = request.app.state
    if not hasattr(state, "final_exponents"):
        state.final_exponents = _FinalExponents()
    values = await asyncio.gather(*(_exponent(client, job, state.final_exponents) for job in jobs))
    return {job.id: value for job, value in zip(jobs, values, strict=True)}


async def jobs_page(request: Request) -> Response:
    """GET /?state=&name=&cursor=. htmx polls only the table."""
    query = request.query_params
    state, name, cursor = query.get("state") or None, query.get("name") or None, query.get("cursor") or None
    if state is not None and state not in set(JobState):
        raise HTTPException(400, f"state must be one of {', '.join(JobState)}")
    async with api.client(request) as client:
        jobs = await client.list_jobs(state=state, name=name, cursor=cursor, limit=PAGE_SIZE)
        exponents = await _exponents(request, client, jobs.items)
    here = {k: v for k, v in (("state", state), ("name", name), ("cursor", cursor)) if v}
    return page(
        request,
        "fragments/jobs_table.html" if is_fragment(request) else "jobs.html",
        jobs=jobs,
        exponents=exponents,
        states=[s.value for s in JobState],
        state=state,
        name=name,
        cursor=cursor,
        here=here,
    )
