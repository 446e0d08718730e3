"""Jobs for people, and the check of a spec by a node."""

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response, status

from powermean.contracts.api import Job, JobPage, JobSort, JobState, SubmittedJob
from powermean.contracts.attempts import ValidationResult, ValidationTask
from powermean.contracts.job import JobSpec
from powermean.contracts.renaming import old_names_used
from server.jobs import service
from server.jobs.listing import JobFilter, list_jobs
from server.routes.access import CurrentNode, CurrentPerson, KnownCallerRoute
from server.routes.dependencies import RequestDatabase
from server.routes.deprecations import GivenBody

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
def submit_job(
    spec: JobSpec,
    given: GivenBody,
    person: CurrentPerson,
    database: RequestDatabase,
    response: Response,
    idempotency_key: IdempotencyKey = None,
) -> SubmittedJob:
    """The job is stored; a node then checks what only a node can check, and the job is queued."""
    with database.write() as session:
        submitted = service.submit(session, person.key_id, spec, idempotency_key)
    response.headers["Location"] = f"/v1/jobs/{submitted.job.id}"
    if not submitted.new:
        response.status_code = status.HTTP_200_OK
    return SubmittedJob(**dict(submitted.job), deprecations=tuple(old_names_used(spec, given)))


@router.get("", summary="List jobs")
def get_jobs(
    person: CurrentPerson,
    database: RequestDatabase,
    state: JobState | None = None,
    name: Annotated[str | None, Query(min_length=1, max_length=120, description="Part of the name.")] = None,
    created_by: Annotated[str | None, Query(max_length=32, description="Id of the submitter's key.")] = None,
    sort: Annotated[JobSort, Query(description="`-` is descending.")] = "-created",
    cursor: Annotated[
        str | None, Query(max_length=1000, description="`next` of the previous page in the same order.")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> JobPage:
    """Newest first, or in another order; jobs without the value that is sorted by come last."""
    with database.read() as session:
        return list_jobs(session, JobFilter(state, name, created_by), sort, cursor, limit)


@router.get("/{job_id}", summary="Show a job")
def get_job(job_id: str, person: CurrentPerson, database: RequestDatabase) -> Job:
    """The job with its spec, attempts and result."""
    with database.read() as session:
        return service.show(session, job_id)


@router.post("/{job_id}/cancel", summary="Cancel a job")
def cancel_job(job_id: str, person: CurrentPerson, database: RequestDatabase) -> Job:
    """At once if nothing runs; a running job stops within a heartbeat or two. Repeats have no effect."""
    with database.write() as session:
        return service.cancel(session, job_id)


@router.get("/{job_id}/validation", tags=["nodes"], summary="What a node should check")
def get_validation(job_id: str, node: CurrentNode, database: RequestDatabase) -> ValidationTask:
    """The spec and where its dataset is."""
    with database.read() as session:
        return service.validation_task(session, job_id)


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
