"""Projects: their list, and for each one its members and datasets."""

from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import require_same_origin
from dashboard.parameters import checked, form_texts
from dashboard.rendering import page
from dashboard.viewer import viewer_of
from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody
from powermean.contracts.identity import MemberRequest, NewProject, ProjectChange, ProjectRole

ROLES: tuple[ProjectRole, ...] = ("viewer", "member", "maintainer")
DATASETS = 100


async def projects_page(
    request: Request, error: ErrorBody | None = None, given: dict[str, str] | None = None, status: int = 200
) -> Response:
    """GET /projects: the viewer's. Administrators make new ones here."""
    return page(request, "projects.html", status=status, error=error, given=given or {})


async def create(request: Request) -> Response:
    """POST /projects: go to the new project's page."""
    require_same_origin(request)
    given = await form_texts(request, "name", "title")
    try:
        wanted = checked(NewProject, {"name": given["name"], "title": given["title"] or None})
        async with api.client(request) as client:
            made = await client.create_project(wanted.name, wanted.title)
    except ApiError as refused:
        return await projects_page(request, refused.body, given, refused.status)
    return RedirectResponse(f"/projects/{made.name}", status_code=303)


async def project_page(
    request: Request, error: ErrorBody | None = None, given: dict[str, str] | None = None, status: int = 200
) -> Response:
    """GET /projects/{project}: who is in it, and the way to what it has."""
    name = request.path_params["project"]
    async with api.client(request) as client:
        project = await client.get_project(name)
        members = await client.members(name)
    context: dict[str, Any] = {"error": error, "given": given or {}, "roles": ROLES}
    return page(request, "project.html", status, project=project, members=members.items, **context)


async def rename(request: Request) -> Response:
    """POST /projects/{project}: a new title."""
    require_same_origin(request)
    given = await form_texts(request, "title")
    try:
        title = checked(ProjectChange, given).title
        async with api.client(request) as client:
            await client.change_project(request.path_params["project"], title)
    except ApiError as refused:
        return await _refused(request, refused, given)
    return _back(request)


async def set_member(request: Request) -> Response:
    """POST /projects/{project}/members: add somebody, or change their role."""
    require_same_origin(request)
    given = await form_texts(request, "person", "role")
    try:
        role = checked(MemberRequest, {"role": given["role"]}).role
        async with api.client(request) as client:
            await client.set_member(request.path_params["project"], given["person"].strip(), role)
    except ApiError as refused:
        return await _refused(request, refused, given)
    return _back(request)


async def remove_member(request: Request) -> Response:
    """GET asks first; POST takes them out, and shows the project, or the others to whoever left it."""
    name, person = request.path_params["project"], request.path_params["person_id"]
    me = (await viewer_of(request)).me
    if request.method != "POST":
        async with api.client(request) as client:
            found = (await client.members(name)).items
        member = next((one for one in found if one.person_id == person), None)
        return page(request, "member_remove.html", project=name, member=member, leaves=person == me.id)
    require_same_origin(request)
    try:
        async with api.client(request) as client:
            await client.remove_member(name, person)
    except ApiError as refused:
        return await _refused(request, refused, {})
    return RedirectResponse("/projects", status_code=303) if person == me.id else _back(request)


async def datasets_page(request: Request) -> Response:
    """GET /projects/{project}/datasets."""
    name, cursor = request.path_params["project"], request.query_params.get("cursor") or None
    async with api.client(request) as client:
        project = await client.get_project(name)
        found = await client.datasets(cursor, DATASETS, name)
    return page(request, "datasets.html", project=project, datasets=found, cursor=cursor)


async def _refused(request: Request, refused: ApiError, given: dict[str, str]) -> Response:
    """The page with what was wrong; a project that is not there has none."""
    if refused.status == 401:
        raise refused
    return await project_page(request, refused.body, given, refused.status)


def _back(request: Request) -> Response:
    return RedirectResponse(f"/projects/{request.path_params['project']}", status_code=303)
