"""Jobs for people, and the check of a spec by a node."""

import json
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response, status
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from powermean.contracts.api import Job, JobPage, JobSort, JobState, SpecSource, SubmittedJob
from powermean.contracts.attempts import ValidationResult, ValidationWithSecrets
from powermean.contracts.identity import ProjectName
from powermean.contracts.job import JobSpec
from powermean.contracts.priorities import PriorityChange
from powermean.contracts.renaming import old_names_used
from powermean.contracts.revisions import for_workers
from powermean.contracts.secrets import HUB_TOKENS
from powermean.spec_yaml import SpecTextError, read_spec
from server.audit.journal import current, note
from server.db.scoped import ScopedDatabase
from server.errors import ConflictError, UnreadableSpecError
from server.identity.callers import Caller
from server.jobs import service
from server.jobs.cancels import Cancellation, Cancels
from server.jobs.listing import JobFilter, list_jobs
from server.jobs.stored_spec import SpecRefusedError
from server.jobs.submits import Submission, Submits
from server.routes.access import CurrentNode, KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase, RequestDatabase, RequestVault
from server.routes.deprecations import GivenBody
from server.settings import Settings
from server.vault.key_file import KeyUnavailableError
from server.vault.secrets import values_of

router = APIRouter(prefix="/v1/jobs", tags=["jobs"], route_class=KnownCallerRoute)

IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=200,
        pattern=r"^[\x21-\x7e]+$",
        description="A repeated request with the same key and spec returns the first one's job.",
    ),
]


@router.post(
    "",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Submit a job",
    responses={200: {"model": SubmittedJob, "description": "Submitted before under this Idempotency-Key."}},
)
async def submit_job(
    spec: JobSpec,
    given: GivenBody,
    caller: Annotated[Caller, May("job.submit")],
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SubmittedJob:
    """The job is stored; a node then checks what only a node can check, and the job is queued."""
    submission = Submission(caller, spec, json.dumps(given), idempotency_key, current())
    submits: Submits = request.app.state.submits
    submitted = await submits.submit(submission)
    if submitted is None:
        submitted = await run_in_threadpool(_submit_alone, request, submission)
    return _accepted(submitted, spec, given, response)


@router.post(
    "/text",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Submit a job as text",
    responses={200: {"model": SubmittedJob, "description": "Submitted before under this Idempotency-Key."}},
)
def submit_text(
    source: SpecSource,
    caller: Annotated[Caller, May("job.submit")],
    request: Request,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SubmittedJob:
    """The spec as YAML or JSON: as POST /v1/jobs, and the text is kept with its comments."""
    try:
        given = read_spec(source.text).fields
    except SpecTextError as error:
        raise UnreadableSpecError(error.message, remedy=error.remedy) from error
    try:
        spec = JobSpec.model_validate(given)
    except ValidationError as error:
        errors = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise RequestValidationError(errors, body=given) from error
    submitted = _submit_alone(request, Submission(caller, spec, source.text, idempotency_key))
    return _accepted(submitted, spec, given, response)


def _submit_alone(request: Request, one: Submission) -> service.Submitted:
    settings: Settings = request.app.state.settings
    database = ScopedDatabase(request.app.state.database, one.caller.visible)

    def store(*, has_room: bool) -> service.Submitted:
        with database.write() as session:
            submitted = service.submit(
                session,
                one.caller,
                one.spec,
                one.text,
                one.idempotency_key,
                settings.allowed_models,
                has_room=has_room,
            )
            note(target=submitted.job.id, project=submitted.job.project)
        return submitted

    try:
        return store(has_room=False)
    except service.RoomUnknownError:
        with database.read() as session:
            service.check_storage(session, one.caller, one.spec)
        return store(has_room=True)


def _accepted(submitted: service.Submitted, spec: JobSpec, given: object, response: Response) -> SubmittedJob:
    response.headers["Location"] = f"/v1/jobs/{submitted.job.id}"
    if not submitted.new:
        response.status_code = status.HTTP_200_OK
    return SubmittedJob(**dict(submitted.job), deprecations=tuple(old_names_used(spec, given)))


@router.get("", summary="List jobs")
def get_jobs(
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    state: JobState | None = None,
    name: Annotated[str | None, Query(min_length=1, max_length=120, description="Part of the name.")] = None,
    created_by: Annotated[str | None, Query(max_length=32, description="Id of the submitter.")] = None,
    project: Annotated[ProjectName | None, Query(description="Name of a project.")] = None,
    sort: Annotated[JobSort, Query(description="`-` is descending.")] = "-created",
    cursor: Annotated[
        str | None, Query(max_length=1000, description="`next` of the previous page in the same order.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """Newest first, or in another order; jobs without the value that is sorted by come last."""
    with database.read() as session:
        return list_jobs(session, JobFilter(state, name, created_by, project), sort, cursor, limit)


@router.get("/{job_id}", summary="Show a job")
def get_job(job_id: str, caller: Annotated[Caller, May("job.read")], database: CallersDatabase) -> Job:
    """The job with its spec, attempts and result."""
    with database.read() as session:
        return service.show(session, job_id)


@router.get("/{job_id}/text", summary="The spec as it was submitted")
def get_text(
    job_id: str, caller: Annotated[Caller, May("job.read")], database: CallersDatabase
) -> SpecSource:
    """The text with its comments, to edit and submit again; JSON if the job was submitted as such."""
    with database.read() as session:
        return service.source(session, job_id)


@router.post("/{job_id}/cancel", summary="Cancel a job")
async def cancel_job(
    job_id: str, caller: Annotated[Caller, May("job.change")], database: CallersDatabase, request: Request
) -> Job:
    """At once if nothing runs; a running job stops within a heartbeat or two. Repeats have no effect."""

    def cancel_alone() -> Job:
        with database.write() as session:
            return service.cancel(session, job_id, caller.name)

    cancels: Cancels = request.app.state.cancels
    cancelled = await cancels.store(Cancellation(caller, job_id, current()))
    return cancelled if cancelled is not None else await run_in_threadpool(cancel_alone)


@router.post("/{job_id}/pause", summary="Pause a job")
def pause_job(job_id: str, caller: Annotated[Caller, May("job.change")], database: CallersDatabase) -> Job:
    """A running job saves a checkpoint at the end of its step and frees its place; POST .../resume queues it.

    At once if nothing runs. Repeats have no effect.
    """
    with database.write() as session:
        return service.pause(session, job_id, caller.name)


@router.post("/{job_id}/resume", summary="Resume a paused job")
def resume_job(job_id: str, caller: Annotated[Caller, May("job.change")], database: CallersDatabase) -> Job:
    """It waits for a place, and goes on from its last checkpoint. Repeats have no effect."""
    with database.write() as session:
        return service.resume(session, job_id)


@router.post("/{job_id}/priority", summary="Change a job's priority")
def set_priority(
    job_id: str,
    wanted: PriorityChange,
    caller: Annotated[Caller, May("job.change")],
    database: CallersDatabase,
) -> Job:
    """It goes before others from now on, or behind them, waiting or running."""
    with database.write() as session:
        note(priority=wanted.priority)
        return service.set_priority(session, caller, job_id, wanted.priority)


@router.get(
    "/{job_id}/validation",
    response_model=ValidationWithSecrets,
    tags=["nodes"],
    summary="What a node should check",
)
def get_validation(
    job_id: str, node: CurrentNode, database: RequestDatabase, vault: RequestVault
) -> JSONResponse:
    """The spec, where its dataset is, and what its model is fetched with."""
    with database.write() as session:
        try:
            task, job = service.validation_task(session, job_id)
            first = task.spec.model if task.origin is None else task.origin.first_model
            tokens = values_of(session, vault, job, HUB_TOKENS if first.name else ())
        except (KeyUnavailableError, SpecRefusedError) as error:
            service.accept_validation(session, job_id, ValidationResult(errors=(error.error,)))
            refused = ConflictError(str(error), remedy="Drop the task: the job has failed.")
        else:
            return JSONResponse(for_workers(ValidationWithSecrets(task=task, secrets=tokens)))
    raise refused


@router.post(
    "/{job_id}/validation",
    status_code=status.HTTP_204_NO_CONTENT,
    tags=["nodes"],
    summary="What a node found",
)
def post_validation(
    job_id: str, result: ValidationResult, node: CurrentNode, database: RequestDatabase
) -> None:
    """Without errors the job is queued, otherwise it fails with them."""
    with database.write() as session:
        service.accept_validation(session, job_id, result)
