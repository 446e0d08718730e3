"""Projects and their members."""

from typing import Literal, cast

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from powermean.contracts.identity import Member, NewProject, ProjectChange, ProjectRole
from powermean.contracts.identity import Project as ProjectView
from server.db.models import Membership, Person, Project
from server.db.session import database_now
from server.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError
from server.identity.callers import Caller
from server.identity.people import find, named, project_exists
from server.identity.policy import Verb


def choose(session: Session, caller: Caller, verb: Verb, named: str | None) -> str:
    """The project that something new belongs to: the one named, or the caller's default.

    Raises InvalidInputError at `project`, also for projects that the caller can't see, and ForbiddenError.
    """
    project = named or caller.default_project
    if project is None:
        raise InvalidInputError.at(
            "project", "which project is it for?", "Name it, or use a key of one project."
        )
    if not sees(session, caller, project):
        raise InvalidInputError.at("project", f"no project {project}", "GET /v1/projects lists yours.")
    if not caller.may(verb, project):
        raise ForbiddenError(
            f"you may not do this in project {project} ({verb})", remedy="Ask one of its maintainers."
        )
    return project


def keep(session: Session, project: str) -> None:
    """Let nobody delete the project before the transaction ends, which adds something to it.

    A deleted project keeps its row for a while, so the foreign key alone lets things in.

    Raises InvalidInputError: it was deleted.
    """
    there = select(Project.id).where(Project.id == project, Project.deleted_at.is_(None))
    if session.scalar(there.with_for_update(read=True, key_share=True)) is None:
        raise InvalidInputError.at("project", f"no project {project}", "GET /v1/projects lists yours.")


def sees(session: Session, caller: Caller, project: str) -> bool:
    """Whether there is such a project, as far as the caller can know."""
    if caller.visible is None:
        return project == caller.default_project or project_exists(session, project)
    return project in caller.visible


def create(session: Session, caller: Caller, wanted: NewProject) -> ProjectView:
    """Make a project. Raises ConflictError: the name is taken."""
    row = Project(id=wanted.name, title=wanted.title or wanted.name, created_at=database_now(session))
    try:
        with session.begin_nested():
            session.add(row)
    except IntegrityError as error:
        raise ConflictError(f"there already is a project {wanted.name}", remedy="Choose another.") from error
    return _view(row, caller)


def list_projects(session: Session, caller: Caller) -> tuple[ProjectView, ...]:
    """What the caller sees, by name."""
    query = select(Project).where(Project.deleted_at.is_(None)).order_by(Project.id)
    if caller.visible is not None:
        query = query.where(Project.id.in_(caller.visible))
    return tuple(_view(row, caller) for row in session.scalars(query))


def show(session: Session, caller: Caller, project: str) -> ProjectView:
    """One project."""
    return _view(session.get_one(Project, project), caller)


def change(session: Session, caller: Caller, project: str, wanted: ProjectChange) -> ProjectView:
    """Change a project's title."""
    row = session.get_one(Project, project)
    row.title = wanted.title
    return _view(row, caller)


def members(session: Session, project: str) -> tuple[Member, ...]:
    """Who is in the project, by name."""
    query = (
        select(Person, Membership.role)
        .join(Membership, Membership.person_id == Person.id)
        .where(Membership.project_id == project)
        .order_by(func.lower(Person.name), Person.id)
    )
    return tuple(_member(person, role) for person, role in session.execute(query))


def set_member(session: Session, project: str, person_id: str, role: ProjectRole) -> Member:
    """Add a person (id or e-mail address), or change their role. Raises NotFoundError."""
    person = find(session, person_id, remedy="Ask an administrator to add them to the service first.")
    row = session.get(Membership, (person.id, project))
    if row is None:
        session.add(Membership(person_id=person.id, project_id=project, role=role))
    else:
        row.role = role
    session.flush()
    return _member(person, role)


def remove_member(session: Session, project: str, person_id: str) -> None:
    """Take a person out of the project; what they made there stays. Raises NotFoundError."""
    query = (
        select(Membership, Person)
        .join(Person, Person.id == Membership.person_id)
        .where(Membership.project_id == project, named(person_id))
    )
    found = session.execute(query).one_or_none()
    if found is None:
        raise NotFoundError(f"{person_id} is not in project {project}")
    row, person = found
    session.delete(row)
    if person.default_project == project:
        person.default_project = None


def _view(row: Project, caller: Caller) -> ProjectView:
    role = caller.cluster_role or caller.roles.get(row.id)
    return ProjectView(name=row.id, title=row.title, role=role, created_at=row.created_at)


def _member(person: Person, role: str) -> Member:
    return Member(
        person_id=person.id,
        name=person.name,
        email=person.email,
        kind=cast(Literal["person", "service"], person.kind),
        active=person.active,
        role=cast(ProjectRole, role),
    )
