"""Browser sessions and the one-time codes that open them; both are stored hashed.

Every sign-in makes a new secret, so that nobody can know a session's before it is somebody's. A session ends
when it is not used for a while, at its absolute end, with the key that opened it, and with the account.
"""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, cast

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.contracts.signin import OwnSession, SignInMethod
from server.db.models import ApiKey, BrowserSession, Person
from server.db.session import database_now
from server.errors import NotFoundError, UnauthenticatedError
from server.identity.keys import digest, find_key, is_due, is_over
from server.identity.people import is_here

CODE_LIFETIME = timedelta(minutes=10)
INVITATION_LIFETIME = timedelta(days=3)
SECRET_BYTES = 32
ID_LENGTH = 24  # of the hash: names a session, and opens none


@dataclass(frozen=True)
class SignedIn:
    """A person who has shown who they are, how, and the key that restricts what they may do, if one does."""

    person: Person
    key: ApiKey | None
    method: SignInMethod


@dataclass(frozen=True)
class Lifetimes:
    """How long a session lasts."""

    idle: timedelta
    absolute: timedelta


@dataclass(frozen=True)
class Browser:
    """What is known of a browser, for its person to recognise it."""

    agent: str | None
    address: str | None


@dataclass(frozen=True)
class OpenSession:
    """Who is signed in, and in which session."""

    who: SignedIn
    id_sha256: str
    due: bool  # its use is to be written down


def create_code(
    session: Session, person_id: str, key_id: str | None, kind: Literal["code", "invite"] = "code"
) -> tuple[str, datetime]:
    """A code that signs one browser in as this person, with this key, and until when it works: ten minutes,
    or three days for an invitation, after which the person can set a password.
    """
    code = secrets.token_urlsafe(SECRET_BYTES)
    now = database_now(session)
    expires_at = now + (CODE_LIFETIME if kind == "code" else INVITATION_LIFETIME)
    session.add(
        BrowserSession(
            id_sha256=digest(code),
            kind=kind,
            person_id=person_id,
            key_id=key_id,
            created_at=now,
            used_at=now,
            expires_at=expires_at,
            ends_at=expires_at,
        )
    )
    return code, expires_at


def redeem_code(session: Session, code: str) -> SignedIn:
    """Who a code stands for. This uses up the code.

    Raises UnauthenticatedError for a code that is unknown, used or too old.
    """
    spent = session.execute(
        delete(BrowserSession)
        .where(BrowserSession.id_sha256 == digest(code), BrowserSession.kind != "session")
        .returning(
            BrowserSession.kind, BrowserSession.person_id, BrowserSession.key_id, BrowserSession.expires_at
        )
    ).one_or_none()
    found = None
    if spent is not None and spent.expires_at > database_now(session):
        found = _living(
            session,
            session.get(Person, spent.person_id),
            session.get(ApiKey, spent.key_id) if spent.key_id else None,
            "invitation" if spent.kind == "invite" else "code",
        )
    if found is None:
        raise UnauthenticatedError(
            "this sign-in code is unknown, used or too old",
            remedy="Ask for a new one: `powermean login`, or POST /v1/login-codes.",
        )
    return found


def redeem_key(session: Session, secret: str) -> SignedIn:
    """Who this key stands for.

    Raises UnauthenticatedError for anything but a person's valid key.
    """
    found = find_key(session, secret)
    if found is None or found.person is None:
        raise UnauthenticatedError("this key is not known", remedy="Ask an administrator for a key.")
    return SignedIn(found.person, found.key, "key")


def open_session(
    session: Session, who: SignedIn, lifetimes: Lifetimes, browser: Browser
) -> tuple[str, BrowserSession]:
    """The secret of a new session, and the session. Also removes those that are over."""
    now = database_now(session)
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= now))
    secret = secrets.token_urlsafe(SECRET_BYTES)
    ends_at = now + lifetimes.absolute
    row = BrowserSession(
        id_sha256=digest(secret),
        kind="session",
        method=who.method,
        person_id=who.person.id,
        key_id=who.key.id if who.key is not None else None,
        agent=_short(browser.agent, 200),
        address=_short(browser.address, 64),
        created_at=now,
        used_at=now,
        expires_at=min(now + lifetimes.idle, ends_at),
        ends_at=ends_at,
    )
    session.add(row)
    return secret, row


def find_session(session: Session, secret: str) -> OpenSession | None:
    """Who is signed in with this secret."""
    query = (
        select(BrowserSession, Person, ApiKey)
        .join(Person, BrowserSession.person_id == Person.id)
        .outerjoin(ApiKey, ApiKey.id == BrowserSession.key_id)
        .where(
            BrowserSession.id_sha256 == digest(secret),
            BrowserSession.kind == "session",
            BrowserSession.expires_at > database_now(session),
        )
    )
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    row, person, key = found
    who = _living(session, person, key, cast(SignInMethod, row.method))
    due = is_due(row.used_at, database_now(session))
    return OpenSession(who, row.id_sha256, due) if who is not None else None


def touch_session(session: Session, id_sha256: str, idle: timedelta) -> None:
    """The session is being used: its end for want of use moves on, never beyond its absolute end."""
    row = session.get(BrowserSession, id_sha256)
    if row is not None:
        row.used_at = database_now(session)
        row.expires_at = min(row.used_at + idle, row.ends_at)


def list_sessions(session: Session, person_id: str, current: str | None) -> list[OwnSession]:
    """The person's open sessions, the last used first. `current` is the secret of the one that asks."""
    query = select(BrowserSession).where(
        BrowserSession.person_id == person_id,
        BrowserSession.kind == "session",
        BrowserSession.expires_at > database_now(session),
    )
    mine = digest(current) if current is not None else None
    rows = session.scalars(query.order_by(BrowserSession.used_at.desc(), BrowserSession.id_sha256))
    return [
        OwnSession(
            id=row.id_sha256[:ID_LENGTH],
            method=cast(SignInMethod, row.method),
            agent=row.agent,
            address=row.address,
            created_at=row.created_at,
            used_at=row.used_at,
            expires_at=row.expires_at,
            ends_at=row.ends_at,
            current=row.id_sha256 == mine,
        )
        for row in rows
    ]


def end_session(session: Session, person_id: str, session_id: str) -> None:
    """End one of the person's sessions. Raises NotFoundError, also for others'."""
    query = select(BrowserSession).where(
        BrowserSession.person_id == person_id, BrowserSession.kind == "session"
    )
    row = next((one for one in session.scalars(query) if one.id_sha256[:ID_LENGTH] == session_id), None)
    if row is None:
        raise NotFoundError(f"no session {session_id}", remedy="GET /v1/me/sessions lists yours.")
    session.delete(row)


def end_sessions(session: Session, person_id: str) -> None:
    """End all of a person's sessions, and their links that nobody has used."""
    session.execute(delete(BrowserSession).where(BrowserSession.person_id == person_id))


def close_session(session: Session, secret: str) -> Person | None:
    """Sign out; whose session it was, or None if it has ended already."""
    ended = delete(BrowserSession).where(BrowserSession.id_sha256 == digest(secret))
    person_id = session.execute(ended.returning(BrowserSession.person_id)).scalar_one_or_none()
    return session.get(Person, person_id) if person_id is not None else None


def _living(
    session: Session, person: Person | None, key: ApiKey | None, method: SignInMethod
) -> SignedIn | None:
    now = database_now(session)
    if person is None or not is_here(person, now) or (key is not None and is_over(key, now)):
        return None
    return SignedIn(person, key, method)


def _short(text: str | None, length: int) -> str | None:
    """What a browser says of itself, without what is not printed."""
    return "".join(c for c in text if c.isprintable())[:length] if text else None
