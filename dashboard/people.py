"""People: who has an account, what they are, and letting somebody in."""

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import require_same_origin
from dashboard.parameters import checked, form_texts
from dashboard.rendering import page
from powermean.async_client import AsyncClient
from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody, LoginCode
from powermean.contracts.identity import NewPerson, Person, PersonChange

CLUSTER_ROLES = (
    ("none", "no role"),
    ("auditor", "auditor: reads all"),
    ("admin", "admin: may do all"),
)


@dataclass(frozen=True)
class Invitation:
    """A link that signs somebody in, shown this once."""

    person: Person
    code: LoginCode


async def people_page(
    request: Request,
    *,
    error: ErrorBody | None = None,
    given: dict[str, str] | None = None,
    invitation: Invitation | None = None,
    status: int = 200,
) -> Response:
    """GET /people, for administrators and auditors."""
    async with api.client(request) as client:
        found = await client.people()
    context: dict[str, Any] = {"error": error, "given": given or {}, "invitation": invitation}
    return page(request, "people.html", status, people=found.items, cluster_roles=CLUSTER_ROLES, **context)


async def add(request: Request) -> Response:
    """POST /people: make the account, and show the link that lets them in."""
    require_same_origin(request)
    given = await form_texts(request, "name", "email", "project", "role", "kind")
    try:
        person = checked(NewPerson, {name: value for name, value in given.items() if value})
        async with api.client(request) as client:
            made = await client.add_person(person)
            invitation = await _invite(client, made) if made.kind == "person" else None
    except ApiError as refused:
        if refused.status in (401, 403):
            raise
        return await people_page(request, error=refused.body, given=given, status=refused.status)
    return await people_page(request, invitation=invitation)


async def invite(request: Request) -> Response:
    """POST /people/{person_id}/invite: a new link."""
    require_same_origin(request)
    person = await _person(request)
    async with api.client(request) as client:
        invitation = await _invite(client, person)
    return await people_page(request, invitation=invitation)


async def _invite(client: AsyncClient, person: Person) -> Invitation:
    code = await client.invite_person(person.id)
    return Invitation(person, code)


async def person_page(
    request: Request, error: ErrorBody | None = None, given: dict[str, str] | None = None, status: int = 200
) -> Response:
    """GET /people/{person_id}: what an administrator changes of an account."""
    person = await _person(request)
    return page(request, "person.html", status, person=person, error=error, given=given or {})


async def change(request: Request) -> Response:
    """POST /people/{person_id}: their name and address, role in the cluster, or whether they may come in."""
    require_same_origin(request)
    given = await form_texts(request, "name", "email", "default_project", "cluster_role", "active")
    try:
        wanted = checked(PersonChange, {name: value for name, value in given.items() if value})
        async with api.client(request) as client:
            await client.change_person(request.path_params["person_id"], wanted)
    except ApiError as refused:
        if refused.status in (401, 403, 404):
            raise
        if given["name"]:
            return await person_page(request, refused.body, given, refused.status)
        return await people_page(request, error=refused.body, status=refused.status)
    return RedirectResponse("/people", status_code=303)


async def deactivate_page(request: Request) -> Response:
    """GET /people/{person_id}/deactivate asks first."""
    return page(request, "person_deactivate.html", person=await _person(request))


async def _person(request: Request) -> Person:
    """Raises ApiError: not an administrator, or no such account."""
    wanted = request.path_params["person_id"]
    async with api.client(request) as client:
        found = next((one for one in (await client.people()).items if one.id == wanted), None)
    if found is None:
        raise ApiError(404, ErrorBody(code="not_found", message=f"no person {wanted}"))
    return found
