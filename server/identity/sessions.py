"""Browser sessions and the one-time codes that open them; both are stored hashed."""

import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.contracts.api import LoginCode
from server.db.models import ApiKey, BrowserSession, Person
from server.db.session import database_now
from server.errors import UnauthenticatedError
from server.identity.keys import digest, find_key

CODE_LIFETIME = timedelta(minutes=10)
SESSION_LIFETIME = timedelta(days=7)
SECRET_BYTES = 32


@dataclass(frozen=True)
class SignedIn:
    """A person who has shown who they are, and the key that restricts what they may do, if one does."""

    person: Person
    key: ApiKey | None


def create_code(session: Session, person_id: str, key_id: str | None) -> LoginCode:
    """A code that signs one browser in as this person with this key, within ten minutes."""
    code = secrets.token_urlsafe(SECRET_BYTES)
    expires_at = database_now(session) + CODE_LIFETIME
    session.add(
        BrowserSession(
            id_sha256=digest(code), kind="code", person_id=person_id, key_id=key_id, expires_at=expires_at
        )
    )
    return LoginCode(code=code, expires_at=expires_at)


def redeem_code(session: Session, code: str) -> SignedIn:
    """Who a code stands for. This uses up the code.

    Raises UnauthenticatedError for a code that is unknown, used or too old.
    """
    spent = session.execute(
        delete(BrowserSession)
        .where(BrowserSession.id_sha256 == digest(code), BrowserSession.kind == "code")
        .returning(BrowserSession.person_id, BrowserSession.key_id, BrowserSession.expires_at)
    ).one_or_none()
    found = None
    if spent is not None and spent.expires_at > database_now(session):
        found = _living(
            session.get(Person, spent.person_id), session.get(ApiKey, spent.key_id) if spent.key_id else None
        )
    if found is None:
        raise UnauthenticatedError(
            "this sign-in code is unknown, used or older than ten minutes",
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
    return SignedIn(found.person, found.key)


def open_session(session: Session, who: SignedIn) -> tuple[str, datetime]:
    """The secret of a new session and its expiry. Also removes expired sessions."""
    now = database_now(session)
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= now))
    secret = secrets.token_urlsafe(SECRET_BYTES)
    expires_at = now + SESSION_LIFETIME
    session.add(
        BrowserSession(
            id_sha256=digest(secret),
            kind="session",
            person_id=who.person.id,
            key_id=who.key.id if who.key is not None else None,
            expires_at=expires_at,
        )
    )
    return secret, expires_at


def find_session(session: Session, secret: str) -> SignedIn | None:
    """Who is signed in with this secret."""
    query = (
        select(Person, ApiKey)
        .join(BrowserSession, BrowserSession.person_id == Person.id)
        .outerjoin(ApiKey, ApiKey.id == BrowserSession.key_id)
        .where(
            BrowserSession.id_sha256 == digest(secret),
            BrowserSession.kind == "session",
            BrowserSession.expires_at > database_now(session),
        )
    )
    found = session.execute(query).one_or_none()
    return _living(*found) if found is not None else None


def close_session(session: Session, secret: str) -> None:
    """Sign out; no error if the session has already ended."""
    session.execute(delete(BrowserSession).where(BrowserSession.id_sha256 == digest(secret)))


def _living(person: Person | None, key: ApiKey | None) -> SignedIn | None:
    if person is None or not person.active or (key is not None and key.revoked_at is not None):
        return None
    return SignedIn(person, key)
