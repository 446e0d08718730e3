"""Browser sessions and the one-time codes that open them; both are stored hashed."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from powermean.contracts.api import LoginCode
from server.db.models import ApiKey, BrowserSession
from server.db.session import database_now
from server.errors import UnauthenticatedError
from server.identity.keys import digest, find_key

CODE_LIFETIME = timedelta(minutes=10)
SESSION_LIFETIME = timedelta(days=7)
SECRET_BYTES = 32


def create_code(session: Session, key_id: str) -> LoginCode:
    """A code that signs one browser in as the owner of this key, within ten minutes."""
    code = secrets.token_urlsafe(SECRET_BYTES)
    expires_at = database_now(session) + CODE_LIFETIME
    session.add(BrowserSession(id_sha256=digest(code), kind="code", key_id=key_id, expires_at=expires_at))
    return LoginCode(code=code, expires_at=expires_at)


def redeem_code(session: Session, code: str) -> ApiKey:
    """The key behind a code. This uses up the code.

    Raises UnauthenticatedError for a code that is unknown, used or too old.
    """
    spent = session.execute(
        delete(BrowserSession)
        .where(BrowserSession.id_sha256 == digest(code), BrowserSession.kind == "code")
        .returning(BrowserSession.key_id, BrowserSession.expires_at)
    ).one_or_none()
    key = (
        None if spent is None or spent.expires_at <= database_now(session) else _living(session, spent.key_id)
    )
    if key is None:
        raise UnauthenticatedError(
            "this sign-in code is unknown, used or older than ten minutes",
            remedy="Ask for a new one: `powermean login`, or POST /v1/login-codes.",
        )
    return key


def redeem_key(session: Session, secret: str) -> ApiKey:
    """The person's key with this secret.

    Raises UnauthenticatedError for anything else, including a node's token.
    """
    key = find_key(session, secret)
    if key is None or key.role == "node":
        raise UnauthenticatedError("this key is not known", remedy="Ask an administrator for a key.")
    return key


def open_session(session: Session, key: ApiKey) -> tuple[str, datetime]:
    """The secret of a new session and its expiry. Also removes expired sessions."""
    now = database_now(session)
    session.execute(delete(BrowserSession).where(BrowserSession.expires_at <= now))
    secret = secrets.token_urlsafe(SECRET_BYTES)
    expires_at = now + SESSION_LIFETIME
    session.add(
        BrowserSession(id_sha256=digest(secret), kind="session", key_id=key.id, expires_at=expires_at)
    )
    return secret, expires_at


def find_session(session: Session, secret: str) -> ApiKey | None:
    """The key whose owner is signed in with this secret."""
    query = (
        select(ApiKey)
        .join(BrowserSession, BrowserSession.key_id == ApiKey.id)
        .where(
            BrowserSession.id_sha256 == digest(secret),
            BrowserSession.kind == "session",
            BrowserSession.expires_at > database_now(session),
            ApiKey.revoked_at.is_(None),
        )
    )
    return session.execute(query).scalar_one_or_none()


def close_session(session: Session, secret: str) -> None:
    """Sign out; no error if the session has already ended."""
    session.execute(delete(BrowserSession).where(BrowserSession.id_sha256 == digest(secret)))


def _living(session: Session, key_id: str) -> ApiKey | None:
    key = session.get(ApiKey, key_id)
    return key if key is not None and key.revoked_at is None else None
