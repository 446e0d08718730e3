"""What a project stores, and deleting it: a page each, which asks before anything goes."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import require_same_origin
from dashboard.rendering import page
from powermean.contracts.identity import Me
from powermean.rest import ApiError, check

KINDS = {
    "datasets": "Datasets",
    "checkpoints": "Checkpoints",
    "models": "Final models",
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


async def storage_page(request: Request) -> Response:
    """GET /projects/{name}/storage."""
    async with api.client(request) as client:
        storage = await client.storage(request.path_params["project"])
        retention = await client.retention(storage.project)
    return page(request, "storage.html", storage=storage, retention=retention, kinds=KINDS)


async def delete_job(request: Request) -> Response:
    """GET /jobs/{id}/delete asks for confirmation; POST deletes the job."""
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        what = f"job {job.name}"
        if request.method != "POST":
            warning = (
                "Its numbers, trajectories, logs, checkpoints, replays and final model go with it. "
                "This can't be undone."
                if job.state.final
                else f"It is {job.state}: cancel it first."
            )
            return _question(request, what, warning, f"/jobs/{job.id}", possible=job.state.final)
        require_same_origin(request)
        try:
            await client.delete_job(job.id, cascade=True)
        except ApiError as error:
            return _refused(request, what, error, f"/jobs/{job.id}")
    return RedirectResponse("/", status_code=303)


async def delete_checkpoint(request: Request) -> Response:
    """GET /jobs/{id}/checkpoints/{step}/delete asks; POST deletes the checkpoint."""
    step = request.path_params["step"]
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        what, back = f"the checkpoint of {job.name} after step {step}", f"/projects/{job.project}/storage"
        if request.method != "POST":
            return _question(request, what, "The job and its numbers stay.", back)
        require_same_origin(request)
        try:
            await client.delete_checkpoint(job.id, step)
        except ApiError as error:
            return _refused(request, what, error, back)
    return RedirectResponse(back, status_code=303)


async def delete_model(request: Request) -> Response:
    """GET /jobs/{id}/model/delete asks; POST deletes the final model."""
    async with api.client(request) as client:
        job = await client.get_job(request.path_params["job_id"])
        what, back = f"the final model of {job.name}", f"/projects/{job.project}/storage"
        if request.method != "POST":
            return _question(request, what, "The job, its numbers and its checkpoints stay.", back)
        require_same_origin(request)
        try:
            await client.delete_files(job.id)
        except ApiError as error:
            return _refused(request, what, error, back)
    return RedirectResponse(back, status_code=303)


async def delete_dataset(request: Request) -> Response:
    """GET /datasets/{id}/delete asks; POST deletes the dataset."""
    async with api.client(request) as client:
        dataset = await client.get_dataset(request.path_params["dataset_id"])
        what, back = f"dataset {dataset.name}", f"/projects/{dataset.project}/storage"
        if request.method != "POST":
            warning = "Jobs that trained on it stay; nobody can train on it again without uploading it."
            return _question(request, what, warning, back)
        require_same_origin(request)
        try:
            await client.delete_dataset(dataset.id)
        except ApiError as error:
            return _refused(request, what, error, back)
    return RedirectResponse(back, status_code=303)


def _question(request: Request, what: str, warning: str, back: str, *, possible: bool = True) -> Response:
    return page(request, "delete.html", what=what, warning=warning, back=back, possible=possible, error=None)


def _refused(request: Request, what: str, error: ApiError, back: str) -> Response:
    return page(
        request,
        "delete.html",
        status=error.status,
        what=what,
        warning="",
        back=back,
        possible=False,
        error=error.body,
    )
