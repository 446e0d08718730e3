"""Bearer keys of people and nodes: random, shown once, stored and looked up by their sha256.

The lookup uses the hash of what was given, so its timing reveals nothing about stored keys.
"""

import hashlib
import logging
import secrets
from typing import cast

from pydantic import SecretStr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from powermean.contracts.identity import KeyView, NewKey, Role
from powermean.errors import PowermeanError
from server.db.models import ApiKey, BrowserSession
from server.db.session import database_now, upsert
from server.errors import ConflictError, NotFoundError

PREFIXES: dict[Role, str] = {"admin": "pm_", "member": "pm_", "node": "pmn_"}
SECRET_BYTES = 32
MIN_BOOTSTRAP_LENGTH = 16

log = logging.getLogger(__name__)


class WeakBootstrapKeyError(PowermeanError):
    """A key in the settings is too short to be secure."""


def digest(secret: str) -> str:
    """What is stored of a secret. Secrets are long and random, so a plain hash can't be brute-forced."""
    return hashlib.sha256(secret.encode()).hexdigest()


def find_key(session: Session, secret: str) -> ApiKey | None:
    """The key with this secret, if there is one that is not revoked."""
    query = select(ApiKey).where(ApiKey.key_sha256 == digest(secret), ApiKey.revoked_at.is_(None))
    return session.execute(query).scalar_one_or_none()


def create_key(session: Session, name: str, role: Role) -> NewKey:
    """Create a key; the answer is the only place where it is shown."""
    secret = PREFIXES[role] + secrets.token_urlsafe(SECRET_BYTES)
    row = ApiKey(
        id=f"key-{secrets.token_hex(8)}",
        name=name,
        role=role,
        key_sha256=digest(secret),
        created_at=database_now(session),
    )
    session.add(row)
    return NewKey(key=secret, **dict(view(row)))


def list_keys(session: Session) -> list[KeyView]:
    """All keys, newest first, including revoked ones."""
    return [
        view(row) for row in session.scalars(select(ApiKey).order_by(ApiKey.created_at.desc(), ApiKey.id))
    ]


def revoke_key(session: Session, key_id: str) -> None:
    """Revoke a key and end the browser sessions that it opened. Revoking it again is no error.

    Raises NotFoundError, or ConflictError for the last administrator's key, without which nobody could create
    keys.
    """
    admins = session.scalars(
        select(ApiKey.id).where(ApiKey.role == "admin", ApiKey.revoked_at.is_(None)).with_for_update()
    ).all()
    row = session.get(ApiKey, key_id)
    if row is None:
        raise NotFoundError(f"no key {key_id}", remedy="GET /v1/keys lists the keys.")
    if row.revoked_at is not None:
        return
    if list(admins) == [key_id]:
        raise ConflictError("this is the last administrator's key", remedy="Create another one first.")
    row.revoked_at = database_now(session)
    for browser in session.scalars(select(BrowserSession).where(BrowserSession.key_id == key_id)):
        session.delete(browser)


def bootstrap_keys(session: Session, admin_key: SecretStr | None, node_token: SecretStr | None) -> None:
    """Accept the keys from the settings. One that has been revoked stays revoked.

    Raises WeakBootstrapKeyError for a key of fewer than 16 characters.
    """
    wanted: list[tuple[str, Role, SecretStr | None]] = [
        ("bootstrap_admin_key", "admin", admin_key),
        ("bootstrap_node_token", "node", node_token),
    ]
    for setting, role, secret in wanted:
        if secret is not None:
            _bootstrap(session, setting, role, secret.get_secret_value())


def _bootstrap(session: Session, setting: str, role: Role, secret: str) -> None:
    if len(secret) < MIN_BOOTSTRAP_LENGTH:
        raise WeakBootstrapKeyError(
            f"POWERMEAN_{setting.upper()} has fewer than {MIN_BOOTSTRAP_LENGTH} characters: use a random one"
        )
    sha256 = digest(secret)
    key_id = f"key-{sha256[:16]}"
    now = database_now(session)
    row = {"id": key_id, "name": f"from {setting}", "role": role, "key_sha256": sha256, "created_at": now}
    known = session.scalar(select(func.count()).where(ApiKey.key_sha256 == sha256))
    if not known:
        upsert(session, ApiKey, [row])
    stored = session.scalars(select(ApiKey).where(ApiKey.key_sha256 == sha256)).one()
    if stored.role != role:
        raise ConflictError(
            f"the key in POWERMEAN_{setting.upper()} already exists with the role {stored.role}"
        )
    if stored.revoked_at is not None:
        log.warning("the key in POWERMEAN_%s was revoked and is not accepted", setting.upper())


def view(row: ApiKey) -> KeyView:
    """The key as the API returns it."""
    return KeyView(
        id=row.id,
        name=row.name,
        role=cast(Role, row.role),
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
