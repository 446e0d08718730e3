"""Datasets, logs, checkpoints and the files of final models."""

import secrets
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response, status
from pydantic import TypeAdapter, ValidationError
from starlette.concurrency import run_in_threadpool

from powermean.artefacts import ArtefactStore
from powermean.contracts.api import CheckpointList, Dataset, DatasetList, ErrorResponse, FileList, LogText
from powermean.contracts.attempts import LogChunk
from powermean.contracts.base import Name
from powermean.contracts.forks import Origin
from powermean.contracts.identity import ProjectName
from server.artefacts import datasets, logs, models
from server.audit.journal import note
from server.db.models import MAX_INTEGER
from server.db.scoped import ScopedDatabase
from server.errors import InvalidInputError
from server.identity.callers import Caller
from server.identity.projects import choose
from server.jobs.events import check_node
from server.routes.access import CurrentAttempt, KnownCallerRoute, May, known_again
from server.routes.dependencies import CallersDatabase, RequestDatabase, RequestStore
from server.routes.downloads import download
from server.routes.uploads import Upload, received
from server.usage import check_room

MAX_OFFSET = 2**63 - 2**31
MAX_NODE_RANK = 1023  # as many nodes as a spec may ask for
LOG_PART = 256 * 1024

router = APIRouter(prefix="/v1", route_class=KnownCallerRoute)

_DATASET_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": {"type": "string", "format": "binary", "description": "JSON lines."},
                        "name": {"type": "string", "maxLength": 120, "description": "Default: the file's."},
                    },
                }
            },
            "application/x-ndjson": {"schema": {"type": "string"}},
        },
    }
}
_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
_FILE: dict[str, Any] = {
    "tags": ["jobs"],
    "response_class": Response,
    "responses": {
        200: {"description": "The file; its ETag is the sha256.", "content": _BYTES},
        206: {"description": "The requested range.", "content": _BYTES},
        304: {"description": "The client's copy is current."},
        416: {"model": ErrorResponse, "description": "The file ends before the range."},
    },
}


@router.post(
    "/datasets",
    status_code=status.HTTP_201_CREATED,
    tags=["datasets"],
    summary="Upload a dataset",
    openapi_extra=_DATASET_BODY,
)
async def create_dataset(
    request: Request,
    caller: Annotated[Caller, May("dataset.add")],
    database: CallersDatabase,
    store: RequestStore,
    name: Annotated[str | None, Query(description="Name of a dataset sent as the body itself.")] = None,
    project: Annotated[
        ProjectName | None, Query(description="Project that it belongs to; default: yours.")
    ] = None,
    require: Annotated[list[str], Query(description="Fields that every row must have.", max_length=32)] = [],  # noqa: B006 - FastAPI copies it
) -> Dataset:
    """One JSON object per line, as a form's `file` or as the body. Every line is checked, and the first wrong
    ones are named. Uploading the same content again returns the same dataset."""
    await run_in_threadpool(_owner, database, caller, project)
    async with received(request) as upload:
        await known_again(request)
        now: Caller = request.state.caller
        owner = await run_in_threadpool(_owner, database, now, project)
        return await run_in_threadpool(_store_dataset, database, store, now, owner, upload, name, require)


def _owner(database: ScopedDatabase, caller: Caller, project: str | None) -> str:
    """The project that a new dataset belongs to, which must have room; asked before the upload and after."""
    with database.read() as session:
        chosen = choose(session, caller, "dataset.add", project)
        check_room(session, chosen)
        return chosen


def _store_dataset(
    database: ScopedDatabase,
    store: ArtefactStore,
    caller: Caller,
    project: str,
    upload: Upload,
    name: str | None,
    require: list[str],
) -> Dataset:
    chosen = _checked_name(name or upload.name or "dataset")
    found = datasets.examine(upload.path, require)
    # A folder of its own: the file of a dataset of the same content that is being deleted may go any moment.
    folder = f"datasets/{found.dataset_id(project)}/{secrets.token_hex(8)}"
    with database.read() as session:
        check_room(session, project, upload.path.stat().st_size)
    ref = store.put_file(folder, upload.path, "rows.jsonl")
    with database.write() as session:
        stored = datasets.add(session, caller, project, chosen, found, ref)
        note(target=stored.id, project=project)
    return stored


def _checked_name(name: str) -> str:
    try:
        return TypeAdapter(Name).validate_python(name)
    except ValidationError as error:
        message = error.errors()[0]["msg"]
        raise InvalidInputError.at("name", message, "Use 1 to 120 printable characters.") from error


@router.get("/datasets", tags=["datasets"], summary="List datasets")
def list_datasets(
    caller: Annotated[Caller, May("dataset.read")],
    database: CallersDatabase,
    project: Annotated[ProjectName | None, Query(description="Name of a project.")] = None,
    cursor: Annotated[str | None, Query(max_length=100, description="`next` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 200,
) -> DatasetList:
    """Newest first."""
    with database.read() as session:
        return datasets.page(session, project, cursor, limit)


@router.get("/datasets/{dataset_id}", tags=["datasets"], summary="Show a dataset")
def get_dataset(
    dataset_id: str, caller: Annotated[Caller, May("dataset.read")], database: CallersDatabase
) -> Dataset:
    """Its name, size and fields."""
    with database.read() as session:
        return datasets.find(session, dataset_id)


@router.delete(
    "/datasets/{dataset_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    tags=["datasets"],
    summary="Delete a dataset",
)
def delete_dataset(
    dataset_id: str,
    caller: Annotated[Caller, May("dataset.remove")],
    database: CallersDatabase,
) -> None:
    """Refused while jobs that have not ended train on it, which the error lists."""
    with database.write() as session:
        datasets.remove(session, dataset_id)


@router.post(
    "/attempts/{attempt_id}/logs",
    status_code=status.HTTP_204_NO_CONTENT,
    tags=["attempts"],
    summary="Append to an attempt's log",
)
def post_log(
    attempt_id: str,
    chunk: LogChunk,
    claims: CurrentAttempt,
    database: RequestDatabase,
    store: RequestStore,
) -> None:
    """Bytes that the log already has are skipped; a chunk that would leave a gap is refused with the offset
    to continue from."""
    check_node(claims, chunk.node_rank)
    data = chunk.text.encode()
    with database.write() as session:
        new = logs.missing_part(session, attempt_id, claims, chunk.offset, data)
    if new:
        ref = store.put_bytes(logs.owner_of(claims), "log", new)
        with database.write() as session:
            logs.append(session, attempt_id, claims, chunk.offset + len(data) - len(new), new, ref)


@router.get("/jobs/{job_id}/logs", tags=["jobs"], summary="Part of an attempt's log")
def get_logs(
    job_id: str,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
    attempt: Annotated[
        int | None,
        Query(ge=1, le=MAX_INTEGER, description="Number of the attempt; default: the current one."),
    ] = None,
    node_rank: Annotated[
        int, Query(ge=0, le=MAX_NODE_RANK, description="Which of the attempt's nodes; 0: the first.")
    ] = 0,
    offset: Annotated[int, Query(ge=0, le=MAX_OFFSET, description="First byte wanted.")] = 0,
    limit: Annotated[int, Query(ge=16, le=2**20, description="Most bytes wanted.")] = LOG_PART,
) -> LogText:
    """Text from the offset on, never cut within a character; continue from `next_offset`."""
    with database.read() as session:
        found = logs.find_range(session, job_id, attempt, node_rank, offset, limit)
    return logs.read_text(found, store)


@router.get("/jobs/{job_id}/checkpoints", tags=["jobs"], summary="A job's checkpoints")
def get_checkpoints(
    job_id: str, caller: Annotated[Caller, May("job.read")], database: CallersDatabase
) -> CheckpointList:
    """The checkpoints that are kept, oldest first."""
    with database.read() as session:
        return CheckpointList(items=models.checkpoints(session, job_id))


Step = Annotated[str, Path(pattern=r"^(best|0|[1-9][0-9]{0,6})$", description="A step's number, or best.")]


@router.get("/jobs/{job_id}/checkpoints/{step}/files", tags=["jobs"], summary="Files of a checkpoint")
def get_checkpoint_files(
    job_id: str, step: Step, caller: Annotated[Caller, May("job.read")], database: CallersDatabase
) -> Origin:
    """Its weights, and what they are over: `powermean export` makes a Hugging Face folder of them."""
    with database.read() as session:
        return models.checkpoint(session, job_id, step)


@router.get(
    "/jobs/{job_id}/checkpoints/{step}/files/{path:path}", summary="Download a file of a checkpoint", **_FILE
)
def get_checkpoint_file(
    job_id: str,
    step: Step,
    path: str,
    request: Request,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
) -> Response:
    """As a file of the final model."""
    with database.read() as session:
        ref = models.checkpoint_file(session, job_id, step, path)
    return download(request, store, ref, path)


@router.get(
    "/jobs/{job_id}/origin/{owner}/files/{path:path}",
    summary="Download a file that a fork began with",
    **_FILE,
)
def get_origin_file(
    job_id: str,
    owner: Annotated[str, Path(description="Id of the job that stored it, which may be deleted.")],
    path: str,
    request: Request,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
) -> Response:
    """As a file of the final model. The fork keeps it, whatever becomes of the other job."""
    with database.read() as session:
        ref = models.origin_file(session, job_id, owner, path)
    return download(request, store, ref, path)


@router.get("/jobs/{job_id}/files", tags=["jobs"], summary="Files of the final model")
def get_files(job_id: str, caller: Annotated[Caller, May("job.read")], database: CallersDatabase) -> FileList:
    """A Hugging Face folder: relative path -> size and sha256."""
    with database.read() as session:
        return FileList(files=models.model_files(session, job_id))


@router.get("/jobs/{job_id}/files/{path:path}", summary="Download a file of the final model", **_FILE)
def get_file(
    job_id: str,
    path: str,
    request: Request,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
) -> Response:
    """Takes Range (one range), If-Range and If-None-Match."""
    with database.read() as session:
        ref = models.model_file(session, job_id, path)
    return download(request, store, ref, path)
