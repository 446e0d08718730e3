"""People's accounts and service accounts, and who calls."""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import ColumnElement, func, or_, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from powermean.contracts.identity import ClusterRole, Me, NewPerson, PersonChange, ProjectRole, Role
from powermean.contracts.identity import Person as PersonView
from server.db.inserts import upsert
from server.db.models import ApiKey, BrowserSession, Membership, Person, Project
from server.db.session import database_now
from server.errors import ConflictError, InvalidInputError, NotFoundError
from server.identity.callers import Caller, capped
from server.identity.policy import ROLES

DEFAULT_PROJECT = "default"
ADMINISTRATOR = "person-administrator"  # of the key in the settings


def caller_of(session: Session, person: Person, key: ApiKey | None) -> Caller:
    """What the person may do with this key, or signed in without one."""
    cap = key.role if key is not None else "admin"
    bound = key.project_id if key is not None else None
    cluster_role = cast("ClusterRole | None", person.cluster_role)
    if cluster_role is not None and bound is None and cap in ("admin", "auditor"):
        roles: Mapping[str, ProjectRole] = {} if cap == "auditor" else _roles(session, person.id)
        cluster_role = "auditor" if cap == "auditor" else cluster_role
    else:
        held = _roles(session, person.id) if cluster_role != "admin" else _everywhere(session)
        roles = {name: capped(role, cap) for name, role in held.items() if bound in (None, name)}
        cluster_role = None
    default = bound or person.default_project
    if cluster_role is None and default not in roles:
        default = next(iter(roles)) if len(roles) == 1 else None
    return Caller(
        person_id=person.id,
        name=person.name,
        key_id=key.id if key is not None else None,
        cluster_role=cluster_role,
        roles=roles,
        default_project=default,
        cap=cap,
        bound=bound,
    )


def _roles(session: Session, person_id: str) -> dict[str, ProjectRole]:
    query = select(Membership.project_id, Membership.role).where(Membership.person_id == person_id)
    return {project: cast(ProjectRole, role) for project, role in session.execute(query)}


def _everywhere(session: Session) -> dict[str, ProjectRole]:
    """An administrator with a lesser key: at most a maintainer, of every project."""
    return dict.fromkeys(
        session.scalars(select(Project.id).where(Project.deleted_at.is_(None))), "maintainer"
    )


def project_exists(session: Session, name: str) -> bool:
    """Whether there is such a project, and it was not deleted."""
    query = select(Project.id).where(Project.id == name, Project.deleted_at.is_(None))
    return session.scalar(query) is not None


def is_here(person: Person, now: datetime) -> bool:
    """Whether the account may be used: active, and vouched for if a provider has to."""
    return person.active and (person.oidc_until is None or person.oidc_until > now)


def create(session: Session, wanted: NewPerson) -> PersonView:
    """Make an account. Raises ConflictError (the address is taken), InvalidInputError (no such project)."""
    if wanted.project is not None and not project_exists(session, wanted.project):
        raise InvalidInputError.at("project", f"no project {wanted.project}", "GET /v1/projects lists yours.")
    person = Person(
        id=f"person-{secrets.token_hex(8)}",
        name=wanted.name,
        email=wanted.email,
        kind=wanted.kind,
        cluster_role=wanted.cluster_role,
        default_project=wanted.project,
        active=True,
        created_at=database_now(session),
    )
    with _free_email(session, wanted.email, remedy="Add that account to the project instead."):
        session.add(person)
    if wanted.project is not None:
        session.add(Membership(person_id=person.id, project_id=wanted.project, role=wanted.role))
        session.flush()
    return view(session, person)


@contextmanager
def _free_email(session: Session, email: str | None, remedy: str) -> Iterator[None]:
    """Raises ConflictError if another account has the address that the body gives to one."""
    try:
        with session.begin_nested():
            yield
    except IntegrityError as error:
        message = f"somebody with the e-mail address {email} is here already"
        raise ConflictError(message, remedy=remedy) from error


def named(person_id: str) -> ColumnElement[bool]:
    """The condition of the account with this id or e-mail address."""
    return or_(Person.id == person_id, Person.email == person_id.lower())


def find(session: Session, person_id: str, remedy: str = "GET /v1/people lists the people.") -> Person:
    """The account with this id or e-mail address. Raises NotFoundError."""
    person = session.scalars(select(Person).where(named(person_id))).one_or_none()
    if person is None:
        raise NotFoundError(f"no person {person_id}", remedy=remedy)
    return person


def list_people(session: Session) -> tuple[PersonView, ...]:
    """All accounts, by name."""
    people = session.scalars(select(Person).order_by(func.lower(Person.name), Person.id)).all()
    roles: dict[str, dict[str, ProjectRole]] = {}
    for one in session.scalars(select(Membership).order_by(Membership.project_id)):
        roles.setdefault(one.person_id, {})[one.project_id] = cast(ProjectRole, one.role)
    return tuple(_view(person, roles.get(person.id, {})) for person in people)


def change(session: Session, person_id: str, wanted: PersonChange) -> PersonView:
    """Change an account.

    Raises NotFoundError, InvalidInputError (no such project), or ConflictError: another account has the
    address, or nobody could manage the service any more.
    """
    person = find(session, person_id)
    if wanted.default_project is not None and not project_exists(session, wanted.default_project):
        raise InvalidInputError.at(
            "default_project", f"no project {wanted.default_project}", "GET /v1/projects lists yours."
        )
    loses = wanted.active is False or wanted.cluster_role in ("auditor", "none")
    if loses and person.cluster_role == "admin" and person.active:
        check_others_administrate(session, person.id)
    if wanted.email is not None:
        with _free_email(session, wanted.email, remedy="Use that account, or change its address first."):
            person.email = wanted.email
    person.name = wanted.name or person.name
    person.default_project = wanted.default_project or person.default_project
    if wanted.cluster_role is not None:
        person.cluster_role = None if wanted.cluster_role == "none" else wanted.cluster_role
    if wanted.active is not None:
        person.active = wanted.active
    if not person.active:
        _end_access(session, person.id)
    return view(session, person)


def _end_access(session: Session, person_id: str) -> None:
    """End the person's sessions, codes and keys, for good: who comes back gets new ones."""
    for browser in session.scalars(select(BrowserSession).where(BrowserSession.person_id == person_id)):
        session.delete(browser)
    for key in session.scalars(select(ApiKey).where(ApiKey.person_id == person_id)):
        key.revoked_at = key.revoked_at or database_now(session)


def check_others_administrate(session: Session, person_id: str) -> None:
    """Raises ConflictError unless somebody else is an administrator too."""
    query = select(Person.id).where(Person.cluster_role == "admin", Person.active).with_for_update()
    if set(session.scalars(query)) <= {person_id}:
        raise ConflictError("this is the last administrator", remedy="Make somebody else one first.")


def administrator(session: Session) -> Person:
    """The account of the settings' key."""
    row = {
        "id": ADMINISTRATOR,
        "name": "administrator",
        "kind": "person",
        "cluster_role": "admin",
        "default_project": DEFAULT_PROJECT,
        "active": True,
        "created_at": database_now(session),
    }
    upsert(session, Person, [row])
    return session.get_one(Person, ADMINISTRATOR)


def me(session: Session, caller: Caller) -> Me:
    """The caller's account, and what this key allows of it; one of a single project shows no other."""
    person = view(session, session.get_one(Person, caller.person_id))
    shown = {name: role for name, role in person.projects.items() if caller.bound in (None, name)}
    restricted = {"projects": shown, "default_project": caller.default_project}
    return Me(**dict(person) | restricted, key_id=caller.key_id, allowed=dict(caller.roles))


def view(session: Session, person: Person) -> PersonView:
    """The account as the API returns it."""
    return _view(person, _roles(session, person.id))


def _view(person: Person, roles: Mapping[str, ProjectRole]) -> PersonView:
    return PersonView(
        id=person.id,
        name=person.name,
        email=person.email,
        kind=cast(Literal["person", "service"], person.kind),
        cluster_role=cast("ClusterRole | None", person.cluster_role),
        active=person.active,
        default_project=person.default_project,
        projects=dict(sorted(roles.items())),
        created_at=person.created_at,
    )


def highest(caller: Caller) -> Role:
    """One word for what somebody is, for pages: their highest role."""
    if caller.cluster_role is not None:
        return caller.cluster_role
    return max(caller.roles.values(), key=ROLES.index, default="viewer")
