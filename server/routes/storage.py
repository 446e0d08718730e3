"""What people delete and pin, what projects store and for how long, and the removal of what nobody owns."""

from typing import Annotated

from fastapi import APIRouter, Path, Query, status

from powermean.contracts.storage import Collected, ProjectStorage, Retention, StorageLimit
from server.audit.journal import note
from server.db.models import MAX_INTEGER, Project
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase, RequestDatabase, RequestStore
from server.storage import collection, deletion, projects, retention
from server.storage.in_use import with_reasons
from server.usage import project_storage

router = APIRouter(prefix="/v1", route_class=KnownCallerRoute)

Step = Annotated[int, Path(ge=0, le=MAX_INTEGER)]
ChangesJob = Annotated[Caller, May("job.change")]
GONE = status.HTTP_204_NO_CONTENT


@router.delete("/jobs/{job_id}", status_code=GONE, tags=["jobs"], summary="Delete a job")
def delete_job(
    job_id: str,
    caller: ChangesJob,
    database: CallersDatabase,
    cascade: Annotated[bool, Query(description="Delete replays of it that still wait, too.")] = False,
) -> None:
    """An ended job, with its numbers, logs, checkpoints, model and replays. It is gone at once; its rows and
    files follow in the background."""
    with database.write() as session:
        deletion.delete_job(session, job_id, cascade=cascade)


@router.delete(
    "/jobs/{job_id}/checkpoints/{step}", status_code=GONE, tags=["jobs"], summary="Delete a checkpoint"
)
def delete_checkpoint(job_id: str, step: Step, caller: ChangesJob, database: CallersDatabase) -> None:
    """Refused if it is pinned, and for the newest one of a job that has not ended."""
    with database.write() as session:
        deletion.delete_checkpoint(session, job_id, step)


@router.put(
    "/jobs/{job_id}/checkpoints/{step}/pin", status_code=GONE, tags=["jobs"], summary="Pin a checkpoint"
)
def pin_checkpoint(job_id: str, step: Step, caller: ChangesJob, database: CallersDatabase) -> None:
    """Neither the spec's `checkpoints.keep` nor the project's retention removes it."""
    with database.write() as session:
        deletion.pin_checkpoint(session, job_id, step, pinned=True)


@router.delete(
    "/jobs/{job_id}/checkpoints/{step}/pin", status_code=GONE, tags=["jobs"], summary="Unpin a checkpoint"
)
def unpin_checkpoint(job_id: str, step: Step, caller: ChangesJob, database: CallersDatabase) -> None:
    """It may go again."""
    with database.write() as session:
        deletion.pin_checkpoint(session, job_id, step, pinned=False)


@router.delete("/jobs/{job_id}/files", status_code=GONE, tags=["jobs"], summary="Delete the final model")
def delete_files(job_id: str, caller: ChangesJob, database: CallersDatabase) -> None:
    """Its files; the job and its numbers stay."""
    with database.write() as session:
        deletion.delete_model(session, job_id)


@router.delete(
    "/jobs/{job_id}/replays/{replay_id}", status_code=GONE, tags=["replays"], summary="Delete a replay"
)
def delete_replay(job_id: str, replay_id: str, caller: ChangesJob, database: CallersDatabase) -> None:
    """Refused while it runs."""
    with database.write() as session:
        deletion.delete_replay(session, job_id, replay_id)


@router.delete("/projects/{project}", status_code=GONE, tags=["projects"], summary="Delete a project")
def delete_project(
    project: str,
    caller: Annotated[Caller, May("project.remove")],
    database: RequestDatabase,
    cascade: Annotated[bool, Query(description="Delete what it holds, too.")] = False,
) -> None:
    """Refused while it holds something, which the error lists, and always while a job of it has not ended.
    Administrators only."""
    with database.write() as session:
        projects.delete_project(session, project, cascade=cascade)


@router.get("/projects/{project}/retention", tags=["projects"], summary="How long a project keeps things")
def get_retention(
    project: str, caller: Annotated[Caller, May("project.read")], database: RequestDatabase
) -> Retention:
    """Null: for ever."""
    with database.read() as session:
        return retention.read_retention(session, project)


@router.put("/projects/{project}/retention", tags=["projects"], summary="Set how long a project keeps things")
def put_retention(
    project: str,
    wanted: Retention,
    caller: Annotated[Caller, May("project.change")],
    database: RequestDatabase,
) -> Retention:
    """Applied to ended jobs within minutes. Maintainers only."""
    with database.write() as session:
        retention.set_retention(session, project, wanted)
        note(**{rule: str(value) for rule, value in wanted.model_dump().items() if value is not None})
    return wanted


@router.get("/projects/{project}/storage", tags=["projects"], summary="What a project stores")
def get_storage(
    project: str, caller: Annotated[Caller, May("storage.read")], database: RequestDatabase
) -> ProjectStorage:
    """Bytes by kind, its limit, and the largest things."""
    with database.read() as session:
        return with_reasons(session, project_storage(session, project))


@router.put("/projects/{project}/storage/limit", tags=["projects"], summary="Limit what a project stores")
def put_limit(
    project: str,
    wanted: StorageLimit,
    caller: Annotated[Caller, May("storage.limit")],
    database: RequestDatabase,
) -> ProjectStorage:
    """At the limit uploads and new jobs are refused (`quota_exceeded`); running jobs go on. Administrators
    only."""
    with database.write() as session:
        session.get_one(Project, project).storage_limit = wanted.bytes
        note(limit="none" if wanted.bytes is None else str(wanted.bytes))
        session.flush()
        return with_reasons(session, project_storage(session, project))


@router.post("/gc", tags=["operations"], summary="Remove what nobody owns")
def collect(
    caller: Annotated[Caller, May("cluster.change")],
    database: RequestDatabase,
    store: RequestStore,
    dry_run: Annotated[bool, Query(description="Only say what would be removed.")] = True,
    after: Annotated[
        str | None,
        Query(max_length=200, pattern=r"^[a-z]+/[^/\x00-\x1f]+$", description="`next` of the last answer."),
    ] = None,
) -> Collected:
    """Looks at a part of the artefact store: objects older than a day that no row refers to. Ask again with
    `next` until there is none. Administrators only."""
    return collection.collect(database, store, dry_run=dry_run, after=after)
