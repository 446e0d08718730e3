"""People's accounts and service accounts, for administrators."""

from typing import Annotated

from fastapi import APIRouter, Path, Request, status

from powermean.contracts.api import LoginCode
from powermean.contracts.identity import NewPerson, Person, PersonChange, PersonList
from server.audit.journal import note
from server.identity import accounts, people, sessions
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import RequestDatabase, RequestSettings, login_code

router = APIRouter(prefix="/v1/people", tags=["identity"], route_class=KnownCallerRoute)

PersonId = Annotated[str, Path(max_length=254, description="Id or e-mail address.")]


@router.get("", summary="List the people")
def list_people(caller: Annotated[Caller, May("person.read")], database: RequestDatabase) -> PersonList:
    """All accounts, by name. Administrators and auditors only."""
    with database.read() as session:
        return PersonList(items=people.list_people(session))


@router.post("", status_code=status.HTTP_201_CREATED, summary="Add a person")
def add_person(
    wanted: NewPerson, caller: Annotated[Caller, May("person.change")], database: RequestDatabase
) -> Person:
    """Or a service account for a program. Administrators only."""
    with database.write() as session:
        made = people.create(session, wanted)
        role = wanted.role if wanted.project else None
        note(target=made.id, cluster_role=made.cluster_role, project=wanted.project, role=role)
        return made


@router.patch("/{person_id}", summary="Change a person")
def change_person(
    person_id: PersonId,
    wanted: PersonChange,
    caller: Annotated[Caller, May("person.change")],
    database: RequestDatabase,
) -> Person:
    """`active: false` ends their keys and sessions at once; what they made stays. Administrators only."""
    with database.write() as session:
        note(**{name: str(value) for name, value in wanted.model_dump(exclude_none=True).items()})
        return people.change(session, person_id, wanted)


@router.post("/{person_id}/login-codes", status_code=status.HTTP_201_CREATED, summary="Invite a person")
def invite(
    person_id: PersonId,
    caller: Annotated[Caller, May("person.change")],
    request: Request,
    database: RequestDatabase,
    settings: RequestSettings,
) -> LoginCode:
    """A link for their first sign-in, or for a new password: it works once, within three days.

    Administrators only.
    """
    with database.write() as session:
        person = people.find(session, person_id)
        accounts.check_own_password(person)
        made = sessions.create_code(session, person.id, None, "invite")
    return login_code(request, settings, *made)
