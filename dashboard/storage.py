"""What a project stores, for how long and how much of it; and deleting it: a page each, which asks first."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import require_same_origin
from dashboard.parameters import checked, form_texts
from dashboard.rendering import page
from powermean.calls import ApiError, check
from powermean.contracts.api import ErrorBody
from powermean.contracts.identity import Me
from powermean.contracts.storage import Retention
from powermean.sizes import bytes_of

KINDS = {
    "datasets": "Datasets",
    "checkpoints": "Checkpoints",
    "models": "Final models",
    "forks": "Deleted weights that forks began with",
    "trajectories": "Texts and tokens of trajectories",
    "replays": "Replays",
    "logs": "Logs",
}


async def own_storage_page(request: Request) -> Response:
    """GET /storage: of the caller's default project, or else their first."""
    async with api.raw_client(request) as client:
        me = Me.model_validate_json(check(await client.get("/v1/me")).content)
    project = me.default_project or next(iter(sorted(me.allowed)), "default")
    return RedirectResponse(f"/projects/{project}/storage", status_code=303)


async def storage_page(
    request: Request, error: ErrorBody | None = None, given: dict[str, str] | None = None, status: int = 200
) -> Response:
    """GET /projects/{name}/storage. `given` is what a refused form said."""
    name = request.path_params["project"]
    async with api.client(request) as client:
        project, storage, retention = await asyncio.gather(
            client.get_project(name), client.storage(name), client.retention(name)
        )
    return page(
        request,
        "storage.html",
        status,
        project=project,
        storage=storage,
        retention=retention,
        kinds=KINDS,
        error=error,
        given=given or {},
    )


async def set_retention(request: Request) -> Response:
    """POST /projects/{name}/retention: an empty field keeps for ever."""
    require_same_origin(request)
    given = await form_texts(request, *Retention.model_fields)
    try:
        wanted = checked(Retention, {name: text for name, text in given.items() if text})
        async with api.client(request) as client:
            await client.set_retention(request.path_params["project"], wanted)
    except ApiError as refused:
        return await _form_refused(request, refused, given)
    return _back_to_storage(request)


async def set_limit(request: Request) -> Response:
    """POST /projects/{name}/storage/limit: a size such as 500 GB; empty: no limit."""
    require_same_origin(request)
    given = await form_texts(request, "limit")
    try:
        limit = bytes_of(given["limit"]) if given["limit"].strip() else None
        async with api.client(request) as client:
            await client.limit_storage(request.path_params["project"], limit)
    except ValueError as error:
        refused = ApiError(422, ErrorBody(code="invalid", message=f"The limit {error}."))
        return await _form_refused(request, refused, given)
    except ApiError as refused:
        return await _form_refused(request, refused, given)
    return _back_to_storage(request)


async def pin_checkpoint(request: Request) -> Response:
    """POST /jobs/{id}/checkpoints/{step}/pin with `pinned` yes or no."""
    require_same_origin(request)
    pinned = (await form_texts(request, "pinned"))["pinned"] == "yes"
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        change = client.pin_checkpoint if pinned else client.unpin_checkpoint
        await change(job.id, request.path_params["step"])
    return RedirectResponse(f"/projects/{job.project}/storage#largest", status_code=303)


async def _form_refused(request: Request, refused: ApiError, given: dict[str, str]) -> Response:
    """The page with what was wrong; a project that is not there has none."""
    if refused.status in (401, 404):
        raise refused
    return await storage_page(request, refused.body, given, refused.status)


def _back_to_storage(request: Request) -> Response:
    return RedirectResponse(f"/projects/{request.path_params['project']}/storage", status_code=303)


@dataclass(frozen=True)
class Removal:
    """A thing to delete, as its page asks about it, and where to go when that is done."""

    what: str
    warning: str
    delete: Callable[[], Awaitable[None]]
    back: str
    done: str
    possible: bool = True


async def delete_job(request: Request) -> Response:
    """GET /jobs/{id}/delete asks for confirmation; POST deletes the job."""
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        warning = (
            "Its numbers, trajectories, logs, checkpoints, replays and final model go with it. "
            "This can't be undone."
            if job.state.final
            else f"It is {job.state}: cancel it first."
        )
        delete = partial(client.delete_job, job.id, cascade=True)
        back = f"/jobs/{job.id}"
        return await _remove(
            request, Removal(f"job {job.name}", warning, delete, back, "/", possible=job.state.final)
        )


async def delete_checkpoint(request: Request) -> Response:
    """GET /jobs/{id}/checkpoints/{step}/delete asks; POST deletes the checkpoint."""
    step = request.path_params["step"]
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        what = f"the checkpoint of {job.name} after step {step}"
        delete = partial(client.delete_checkpoint, job.id, step)
        return await _remove(request, _stored(what, "The job and its numbers stay.", delete, job.project))


async def delete_model(request: Request) -> Response:
    """GET /jobs/{id}/model/delete asks; POST deletes the final model."""
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        warning = "The job, its numbers and its checkpoints stay."
        delete = partial(client.delete_files, job.id)
        return await _remove(request, _stored(f"the final model of {job.name}", warning, delete, job.project))


async def delete_dataset(request: Request) -> Response:
    """GET /datasets/{id}/delete asks; POST deletes the dataset."""
    async with api.client(request) as client:
        dataset = await client.get_dataset(request.path_params["dataset_id"])
        warning = "Jobs that trained on it stay; nobody can train on it again without uploading it."
        delete = partial(client.delete_dataset, dataset.id)
        return await _remove(request, _stored(f"dataset {dataset.name}", warning, delete, dataset.project))


def _stored(what: str, warning: str, delete: Callable[[], Awaitable[None]], project: str) -> Removal:
    """Something that the page of the project's storage lists."""
    address = f"/projects/{project}/storage"
    return Removal(what, warning, delete, address, address)


async def _remove(request: Request, removal: Removal) -> Response:
    """GET asks; POST deletes and goes on, or says why it can't."""
    if request.method != "POST":
        return page(request, "delete.html", removal=removal, error=None)
    require_same_origin(request)
    try:
        await removal.delete()
    except ApiError as error:
        return page(request, "delete.html", error.status, removal=removal, error=error.body)
    return RedirectResponse(removal.done, status_code=303)
