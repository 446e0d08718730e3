"""Projects and their members."""

from typing import Annotated

from fastapi import APIRouter, Path, Response, status

from powermean.contracts.identity import (
    Member,
    MemberList,
    MemberRequest,
    NewProject,
    Project,
    ProjectChange,
    ProjectList,
)
from server.audit.journal import note
from server.identity import projects
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import RequestDatabase, RequestThrottle

router = APIRouter(prefix="/v1/projects", tags=["projects"], route_class=KnownCallerRoute)

Reader = Annotated[Caller, May("project.read")]
PersonId = Annotated[str, Path(max_length=254, description="Id or e-mail address.")]


@router.get("", summary="List the projects")
def list_projects(caller: Annotated[Caller, May("self.use")], database: RequestDatabase) -> ProjectList:
    """Those that you are in, by name; administrators and auditors see all."""
    with database.read() as session:
        return ProjectList(items=projects.list_projects(session, caller))


@router.post("", status_code=status.HTTP_201_CREATED, summary="Create a project")
def create_project(
    wanted: NewProject,
    caller: Annotated[Caller, May("project.create")],
    database: RequestDatabase,
    response: Response,
) -> Project:
    """Administrators only."""
    with database.write() as session:
        made = projects.create(session, caller, wanted)
        note(target=made.name, project=made.name)
    response.headers["Location"] = f"/v1/projects/{made.name}"
    return made


@router.get("/{project}", summary="Show a project")
def get_project(project: str, caller: Reader, database: RequestDatabase) -> Project:
    """Its title, and your role in it."""
    with database.read() as session:
        return projects.show(session, caller, project)


@router.patch("/{project}", summary="Change a project")
def change_project(
    project: str,
    wanted: ProjectChange,
    caller: Annotated[Caller, May("project.change")],
    database: RequestDatabase,
) -> Project:
    """Maintainers only."""
    with database.write() as session:
        return projects.change(session, caller, project, wanted)


@router.get("/{project}/members", summary="List a project's members")
def list_members(project: str, caller: Reader, database: RequestDatabase) -> MemberList:
    """By name, with their roles."""
    with database.read() as session:
        return MemberList(items=projects.members(session, project))


@router.put("/{project}/members/{person_id}", summary="Set a member's role")
def set_member(
    project: str,
    person_id: PersonId,
    wanted: MemberRequest,
    caller: Annotated[Caller, May("member.change")],
    database: RequestDatabase,
    throttle: RequestThrottle,
) -> Member:
    """Adds the person, or changes their role. Maintainers only, 60 times in five minutes (429)."""
    if not caller.may("person.read"):
        throttle.count("member", caller.person_id)
    with database.write() as session:
        member = projects.set_member(session, project, person_id, wanted.role)
        note(target=member.person_id, role=member.role)
        return member


@router.delete(
    "/{project}/members/{person_id}", status_code=status.HTTP_204_NO_CONTENT, summary="Remove a member"
)
def remove_member(
    project: str,
    person_id: PersonId,
    caller: Annotated[Caller, May("member.change")],
    database: RequestDatabase,
) -> None:
    """What they made stays in the project. Maintainers only."""
    with database.write() as session:
        projects.remove_member(session, project, person_id)
