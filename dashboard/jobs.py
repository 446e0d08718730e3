"""The list of jobs, a job's page and its parts, and cancelling."""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api, assets
from dashboard.api import is_fragment, require_same_origin
from dashboard.chart_data import chart_data
from dashboard.latest import EVALUATION, Latest, latest
from dashboard.rendering import page
from powermean.async_client import AsyncClient
from powermean.contracts.api import Job, JobState, JobSummary
from powermean.contracts.metrics import METRICS, WHOLE_STEP, MetricsHistory
from powermean.contracts.staleness import JobStaleness
from powermean.rest import ApiError
from powermean.spec_yaml import to_yaml

PAGE_SIZE = 25
_REMEMBERED = 2000
_MEANS = ("p/mean", "p/last_pass/mean")
_COUNTS = ("p/last_pass/defined", "p/last_pass/undefined")
PARTS = {
    "header": "fragments/job_header.html",
    "health": "fragments/health.html",
    "latest": "fragments/latest.html",
    "outcome": "fragments/outcome.html",
    "staleness": "fragments/staleness.html",
}


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


async def _latest(client: AsyncClient, job: Job) -> Latest:
    """Newest values: those of the last step, and of the last evaluation whenever it was."""
    others = [name for name in METRICS if name not in EVALUATION]
    return latest(
        *await asyncio.gather(
            client.metrics(job.id, others, from_step=max(0, job.step - 1)),
            client.metrics(job.id, EVALUATION),
        )
    )


async def _staleness(client: AsyncClient, job: Job) -> JobStaleness | None:
    """p and ESS by staleness over the newest steps; None if the spec allows no staleness."""
    return await client.staleness(job.id) if job.spec.rollout.max_staleness else None


async def job_page(request: Request) -> Response:
    """GET /jobs/{id}."""
    job_id = request.path_params["job_id"]
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        values, checkpoints, health, staleness = await asyncio.gather(
            _latest(client, job),
            client.checkpoints(job_id),
            client.health(job_id),
            _staleness(client, job),
        )
    return page(
        request,
        "job.html",
        job=job,
        latest=values,
        checkpoints=checkpoints.items,
        health=health,
        staleness=staleness,
        spec=to_yaml(job.spec),
        script_data=chart_data(job),
        install=assets.INSTALL,
    )


async def job_part(request: Request) -> Response:
    """GET /jobs/{id}/part/{one of PARTS}: htmx swaps it while the job runs."""
    job_id, part = request.path_params["job_id"], request.path_params["part"]
    if part not in PARTS:
        raise HTTPException(404)
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        context: dict[str, Any] = {}
        if part == "latest":
            context["latest"] = await _latest(client, job)
        elif part == "health":
            context["health"] = await client.health(job_id)
        elif part == "outcome":
            context["checkpoints"] = (await client.checkpoints(job_id)).items
        elif part == "staleness":
            context["staleness"] = await _staleness(client, job)
    return page(request, PARTS[part], job=job, **context)


async def cancel(request: Request) -> Response:
    """GET asks for confirmation; POST cancels and shows the job."""
    job_id = request.path_params["job_id"]
    async with api.client(request) as client:
        if request.method != "POST":
            return page(request, "cancel.html", job=await client.get_job(job_id))
        require_same_origin(request)
        await client.cancel_job(job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)
