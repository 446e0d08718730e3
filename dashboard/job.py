"""A job's page: overview, charts, system and spec, each at its own address; parts and buttons."""

import asyncio
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api, assets
from dashboard.api import require_same_origin
from dashboard.chart_data import chart_data
from dashboard.latest import EVALUATION, Latest, latest
from dashboard.rendering import page
from dashboard.stages import stages
from dashboard.viewer import viewer_of
from powermean.async_client import AsyncClient
from powermean.calls import ApiError
from powermean.contracts.api import Job, JobState
from powermean.contracts.metrics import METRICS
from powermean.contracts.priorities import DEFAULT_PRIORITY
from powermean.contracts.sharing import QueuedJob
from powermean.contracts.staleness import JobStaleness
from powermean.spec_yaml import to_yaml

PARTS = {
    "header": "fragments/job_header.html",
    "facts": "fragments/job_facts.html",
    "health": "fragments/health.html",
    "latest": "fragments/latest.html",
    "outcome": "fragments/outcome.html",
    "staleness": "fragments/staleness.html",
    "waiting": "fragments/waiting.html",
}


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
    return await client.staleness(job.id) if job.spec and job.spec.rollout.max_staleness else None


async def _waiting(client: AsyncClient, job: Job) -> QueuedJob | None:
    """Why the job waits; None if it doesn't, or has just stopped to."""
    if job.state is not JobState.QUEUED:
        return None
    try:
        return (await client.queue(job=job.id)).items[0]
    except ApiError as error:
        if error.status != 404:
            raise
        return None


def _page(request: Request, template: str, job: Job, **context: Any) -> Response:
    return page(request, template, job=job, stages=stages(job), **context)


async def overview_page(request: Request) -> Response:
    """GET /jobs/{id}: state, health, the two main charts, result and attempts."""
    job_id = request.path_params["job_id"]
    async with api.client(request) as client:
        job, checkpoints, health = await asyncio.gather(
            client.get_job(job_id), client.checkpoints(job_id), client.health(job_id)
        )
        waiting = await _waiting(client, job)
    return _page(
        request,
        "job_overview.html",
        job,
        checkpoints=checkpoints.items,
        health=health,
        waiting=waiting,
        script_data=chart_data(job),
        install=assets.INSTALL,
    )


async def charts_page(request: Request) -> Response:
    """GET /jobs/{id}/charts: learning and optimisation, p by staleness, all numbers of the last step."""
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        values, staleness = await asyncio.gather(_latest(client, job), _staleness(client, job))
    return _page(
        request,
        "job_charts.html",
        job,
        latest=values,
        staleness=staleness,
        script_data=chart_data(job),
        install=assets.INSTALL,
    )


async def system_page(request: Request) -> Response:
    """GET /jobs/{id}/system: sampling, throughput, and what went wrong."""
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
    return _page(request, "job_system.html", job, script_data=chart_data(job), install=assets.INSTALL)


async def spec_page(request: Request) -> Response:
    """GET /jobs/{id}/spec: with all defaults, or as submitted if the server can't read it."""
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        spec = to_yaml(job.spec) if job.spec else (await client.job_text(job.id)).text
    return _page(request, "job_spec.html", job, spec=spec)


async def job_part(request: Request) -> Response:
    """GET /jobs/{id}/part/{one of PARTS}: htmx swaps it while the job runs."""
    job_id, part = request.path_params["job_id"], request.path_params["part"]
    if part not in PARTS:
        raise HTTPException(404)
    async with api.client(request) as client:
        job = await client.get_job(job_id)
        context: dict[str, Any] = {}
        if part in ("header", "facts"):
            await viewer_of(request)
        elif part == "latest":
            context["latest"] = await _latest(client, job)
        elif part == "health":
            context["health"] = await client.health(job_id)
        elif part == "outcome":
            context["checkpoints"] = (await client.checkpoints(job_id)).items
        elif part == "staleness":
            context["staleness"] = await _staleness(client, job)
        elif part == "waiting":
            context["waiting"] = await _waiting(client, job)
    return _page(request, PARTS[part], job, **context)


async def pause(request: Request) -> Response:
    """POST pauses and shows the job."""
    job_id = request.path_params["job_id"]
    require_same_origin(request)
    async with api.client(request) as client:
        await client.pause_job(job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


async def resume(request: Request) -> Response:
    """POST resumes and shows the job."""
    job_id = request.path_params["job_id"]
    require_same_origin(request)
    async with api.client(request) as client:
        await client.resume_job(job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)


async def priority(request: Request) -> Response:
    """GET asks which; POST changes it and shows the job, or the question again with what is wrong."""
    job_id = request.path_params["job_id"]
    error = None
    async with api.client(request) as client:
        if request.method == "POST":
            require_same_origin(request)
            form = await request.form()
            try:
                await client.set_priority(job_id, str(form.get("priority") or DEFAULT_PRIORITY))
            except ApiError as refused:
                if refused.status == 401:
                    raise
                error = refused
            else:
                return RedirectResponse(f"/jobs/{job_id}", status_code=303)
        job, found = await asyncio.gather(client.get_job(job_id), client.priorities())
    return page(
        request,
        "priority.html",
        status=error.status if error else 200,
        job=job,
        classes=found.items,
        error=error.body if error else None,
    )


async def cancel(request: Request) -> Response:
    """GET asks for confirmation; POST cancels and shows the job."""
    job_id = request.path_params["job_id"]
    async with api.client(request) as client:
        if request.method != "POST":
            return page(request, "cancel.html", job=await client.get_job(job_id))
        require_same_origin(request)
        await client.cancel_job(job_id)
    return RedirectResponse(f"/jobs/{job_id}", status_code=303)
