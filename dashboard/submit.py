"""A new job: a spec as text, checked by the API, with errors beside the text."""

import json
from pathlib import Path
from uuid import uuid4

import yaml
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import require_same_origin
from dashboard.fields import spec_sections
from dashboard.problems import said_once
from dashboard.rendering import page
from dashboard.viewer import viewer_of
from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody
from powermean.spec_yaml import SpecTextError, read_spec, with_project

STARTER = (Path(__file__).parent / "starter.yaml").read_text(encoding="utf-8")


async def _form(
    request: Request,
    text: str,
    error: ErrorBody | None = None,
    status: int = 200,
    project: str | None = None,
) -> Response:
    viewer = await viewer_of(request)
    # A fresh key for each form: a second click repeats the first submission, an edited form does not.
    return page(
        request,
        "new.html",
        status=status,
        text=text,
        error=error,
        key=uuid4().hex,
        sections=spec_sections(),
        project=project or viewer.chosen or viewer.me.default_project,
    )


def _for_project(text: str, project: object) -> str:
    """The text with the chosen project, unless it names one or can't be read, which the API explains."""
    if not isinstance(project, str) or not project:
        return text
    try:
        return with_project(text, project)
    except SpecTextError:
        return text


def readable(text: str) -> str:
    """A spec that a program sent as JSON, as YAML; any other text as it is."""
    if not text.startswith("{"):
        return text
    try:
        return yaml.safe_dump(json.loads(text), sort_keys=False, allow_unicode=True, width=100)
    except ValueError:
        return text


def _with_lines(error: ErrorBody, text: str) -> ErrorBody:
    """The fields' errors with their lines in the text, each said once."""
    error = said_once(error)
    if not error.fields:
        return error
    try:
        read = read_spec(text)
    except SpecTextError:
        return error
    fields = []
    for field in error.fields:
        line = read.line_of(field.path)
        fields.append(
            field if line is None else field.model_copy(update={"message": f"line {line}: {field.message}"})
        )
    return error.model_copy(update={"fields": tuple(fields)})


async def form_page(request: Request) -> Response:
    """GET /new?from=JOB: the starter spec, or another job's as it was submitted."""
    source = request.query_params.get("from")
    if not source:
        return await _form(request, STARTER)
    async with api.client(request) as client:
        source_text = (await client.job_text(source)).text
        project = (await client.get_job(source)).project
    text = await run_in_threadpool(readable, source_text)
    return await _form(request, text, project=project)


async def submit(request: Request) -> Response:
    """POST /new: go to the new job's page, or show the form with the errors."""
    require_same_origin(request)
    form = await request.form(max_fields=10)
    text, key, project = form.get("spec"), form.get("key"), form.get("project")
    if not isinstance(text, str) or not isinstance(key, str) or not key.isascii() or not text.strip():
        empty = ErrorBody(code="empty_spec", message="The spec is empty.", remedy="Start from the example.")
        return await _form(request, STARTER, empty, status=422)
    sent = await run_in_threadpool(_for_project, text, project)
    try:
        async with api.client(request) as client:
            job = await client.create_job_from_text(sent, idempotency_key=key)
    except ApiError as refused:
        if refused.status == 401:
            raise
        error = await run_in_threadpool(_with_lines, refused.body, text)
        return await _form(request, text, error, refused.status, str(project) if project else None)
    return RedirectResponse(f"/jobs/{job.id}", status_code=303)
