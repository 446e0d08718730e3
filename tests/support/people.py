"""People for tests: straight into the database, without a server."""

from sqlalchemy.orm import Session

from powermean.contracts.identity import NewPerson, ProjectRole
from server.db.models import Person
from server.identity.callers import Caller
from server.identity.people import caller_of, create


def add_person(session: Session, name: str = "Ada", role: ProjectRole = "member") -> Caller:
    """A new person of the project `default`, signed in without a key."""
    made = create(session, NewPerson(name=name, project="default", role=role))
    return caller_of(session, session.get_one(Person, made.id), None)
