"""Signing a command line in from a browser elsewhere: the device flow (RFC 8628), with a key as its end.

The command line gets a long secret and a short code. A signed-in person types the code and says yes or no.
The next question with the secret makes the key and ends the matter: no secret of a key is ever stored.
"""

import secrets
from datetime import timedelta
from typing import cast

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.contracts.identity import NewKey, Role
from powermean.contracts.signin import (
    DeviceAnswer,
    DeviceCode,
    DeviceDecision,
    DeviceState,
    DeviceView,
    SignedInDevice,
)
from server.db.models import DeviceSignIn, Person
from server.db.session import database_now
from server.errors import ConflictError, InvalidInputError, NotFoundError, UnauthenticatedError
from server.identity.callers import Caller
from server.identity.keys import digest, key_end, key_for, still_valid
from server.identity.people import is_here
from server.identity.projects import sees

LIFETIME = timedelta(minutes=10)
INTERVAL_S = 2.0
SECRET_BYTES = 32
LETTERS = "BCDFGHJKLMNPQRSTVWXZ"  # no vowels, so no words; nothing that looks like a digit (RFC 8628, 6.1)
LENGTH = 8


def start(session: Session, client: str, address: str | None) -> DeviceCode:
    """A new pair of codes. Also forgets those that ran out."""
    now = database_now(session)
    session.execute(delete(DeviceSignIn).where(DeviceSignIn.expires_at <= now))
    secret = secrets.token_urlsafe(SECRET_BYTES)
    row = DeviceSignIn(
        secret_sha256=digest(secret),
        user_code="".join(secrets.choice(LETTERS) for _ in range(LENGTH)),
        client=client,
        address=address,
        state="pending",
        created_at=now,
        expires_at=now + LIFETIME,
    )
    session.add(row)
    return DeviceCode(
        device_code=secret, user_code=_spaced(row.user_code), interval_s=INTERVAL_S, expires_at=row.expires_at
    )


def show(session: Session, user_code: str) -> DeviceView:
    """Who asks with this code. Raises NotFoundError for one that is unknown, used or too old."""
    return _view(_find(session, user_code))


def decide(session: Session, caller: Caller, user_code: str, wanted: DeviceDecision) -> DeviceView:
    """The person's word. The key will allow no more than what they are signed in with.

    Raises NotFoundError, ConflictError (decided already), or InvalidInputError (no such project).
    """
    row = _find(session, user_code, to_change=True)
    if row.state != "pending":
        raise ConflictError("this code was decided on already", remedy="Ask for a new one.")
    project = wanted.project or caller.bound
    if caller.bound not in (None, project) or (project is not None and not sees(session, caller, project)):
        raise InvalidInputError.at("project", f"no project {project}", "GET /v1/projects lists yours.")
    row.state = "approved" if wanted.approve else "denied"
    row.person_id = caller.person_id
    row.project_id = project
    row.role = caller.cap
    row.key_ends_at = key_end(session, caller, wanted.days)
    row.made_by = caller.key_id
    return _view(row)


def claim(session: Session, secret: str) -> DeviceAnswer:
    """The word so far. After a yes this makes the key; a second question finds nothing.

    Raises UnauthenticatedError for a secret that is unknown, used or too old, whose person has left, or that
    was approved with a key that is over.
    """
    query = select(DeviceSignIn).where(DeviceSignIn.secret_sha256 == digest(secret)).with_for_update()
    row = session.scalars(query).one_or_none()
    if row is None or row.expires_at <= database_now(session):
        raise _unknown()
    state = cast(DeviceState, row.state)
    if state == "pending":
        return DeviceAnswer(state=state)
    session.delete(row)
    if state == "denied":
        return DeviceAnswer(state=state)
    person = session.get(Person, row.person_id)
    if person is None or not is_here(person, database_now(session)):
        raise _unknown()
    if row.made_by is not None:
        still_valid(session, row.made_by)
    return DeviceAnswer(
        state=state, signed_in=SignedInDevice(person=person.name, key=_key(session, row, person))
    )


def _key(session: Session, row: DeviceSignIn, person: Person) -> NewKey:
    return key_for(
        session,
        person,
        name=row.client,
        role=cast(Role, row.role),
        project=row.project_id,
        expires_at=row.key_ends_at,
        made_by=row.made_by,
    )


def _find(session: Session, user_code: str, *, to_change: bool = False) -> DeviceSignIn:
    typed = "".join(letter for letter in user_code.upper() if letter in LETTERS)
    query = select(DeviceSignIn).where(DeviceSignIn.user_code == typed)
    query = query.with_for_update() if to_change else query
    row = session.scalars(query).one_or_none()
    if row is None or row.expires_at <= database_now(session):
        raise NotFoundError(
            "no command line waits with this code", remedy="Codes last ten minutes: ask for a new one."
        )
    return row


def _view(row: DeviceSignIn) -> DeviceView:
    return DeviceView(
        user_code=_spaced(row.user_code),
        client=row.client,
        address=row.address,
        created_at=row.created_at,
        expires_at=row.expires_at,
        state=cast(DeviceState, row.state),
    )


def _spaced(code: str) -> str:
    return f"{code[: LENGTH // 2]}-{code[LENGTH // 2 :]}"


def _unknown() -> UnauthenticatedError:
    return UnauthenticatedError(
        "this code is unknown, used or older than ten minutes", remedy="Ask for a new one."
    )
