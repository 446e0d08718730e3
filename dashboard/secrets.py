"""Secrets of a project, or of one's own: their names, and a form that sets a value and never shows one."""

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import require_same_origin
from dashboard.rendering import page
from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody
from powermean.contracts.secrets import OWN


async def secrets_page(request: Request, error: ErrorBody | None = None, status: int = 200) -> Response:
    """GET /projects/{project}/secrets or /me/secrets."""
    name = _project(request)
    async with api.client(request) as client:
        found = await client.secrets(name)
        project = await client.get_project(name) if name else None
    prefix = "" if project else OWN
    return page(
        request,
        "secrets.html",
        status=status,
        project=project,
        prefix=prefix,
        secrets=found.items,
        error=error,
    )


async def set_secret(request: Request) -> Response:
    """POST: set the value, and show the list again."""
    require_same_origin(request)
    form = await request.form(max_fields=10)
    name, value = form.get("name"), form.get("value")
    if not isinstance(name, str) or not isinstance(value, str) or not name or not value:
        empty = ErrorBody(code="empty", message="A secret needs a name and a value.", remedy=None)
        return await secrets_page(request, empty, status=422)
    try:
        async with api.client(request) as client:
            await client.set_secret(name, value, _project(request))
    except ApiError as refused:
        if refused.status in (401, 404):
            raise
        return await secrets_page(request, refused.body, status=refused.status)
    return RedirectResponse(_address(request), status_code=303)


async def remove_secret(request: Request) -> Response:
    """GET asks first; POST removes it."""
    name = request.path_params["name"]
    if request.method == "GET":
        return page(
            request, "secret_remove.html", project=_project(request), name=name, back=_address(request)
        )
    require_same_origin(request)
    try:
        async with api.client(request) as client:
            await client.remove_secret(name, _project(request))
    except ApiError as refused:
        if refused.status != 409:
            raise
        return await secrets_page(request, refused.body, status=refused.status)
    return RedirectResponse(_address(request), status_code=303)


def _project(request: Request) -> str | None:
    """None: one's own."""
    project: str | None = request.path_params.get("project")
    return project


def _address(request: Request) -> str:
    project = _project(request)
    return f"/projects/{project}/secrets" if project else "/me/secrets"
