"""Bearer keys of people and nodes: random, shown once, stored and looked up by their sha256.

The lookup uses the hash of what was given, so its timing reveals nothing about stored keys.
"""

import hashlib
import logging
import secrets
from dataclasses import dataclass
from typing import cast

from pydantic import SecretStr
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from powermean.contracts.identity import KeyRequest, KeyView, NewKey, Role
from powermean.errors import PowermeanError
from server.db.models import ApiKey, BrowserSession, Person
from server.db.session import database_now, upsert
from server.errors import ConflictError, ForbiddenError, InvalidInputError, NotFoundError
from server.identity.callers import Caller
from server.identity.people import administrator, find
from server.identity.projects import sees

PERSON_PREFIX, NODE_PREFIX = "pm_", "pmn_"
SECRET_BYTES = 32
MIN_BOOTSTRAP_LENGTH = 16

log = logging.getLogger(__name__)


class WeakBootstrapKeyError(PowermeanError):
    """A key in the settings is too short to be secure."""


def digest(secret: str) -> str:
    """What is stored of a secret. Secrets are long and random, so a plain hash can't be brute-forced."""
    return hashlib.sha256(secret.encode()).hexdigest()


@dataclass(frozen=True)
class FoundKey:
    """A key that is valid, and whose it is; None: a node's."""

    key: ApiKey
    person: Person | None


def find_key(session: Session, secret: str) -> FoundKey | None:
    """The key with this secret, if there is one that is not revoked and whose person is still here."""
    query = (
        select(ApiKey, Person)
        .outerjoin(Person, Person.id == ApiKey.person_id)
        .where(ApiKey.key_sha256 == digest(secret), ApiKey.revoked_at.is_(None))
    )
    found = session.execute(query).one_or_none()
    if found is None or (found[1] is not None and not found[1].active):
        return None
    return FoundKey(*found)


def create_key(session: Session, caller: Caller, wanted: KeyRequest) -> NewKey:
    """Create a key; the answer is the only place where it is shown.

    Raises ForbiddenError for one that allows more than the caller's own, and InvalidInputError.
    """
    if wanted.role == "node":
        return _create_node_token(session, caller, wanted)
    if not caller.covers(wanted.role, wanted.project):
        raise ForbiddenError(
            "a key can't make one that allows more than itself",
            remedy=f"Yours allows {caller.cap}" + (f" in project {caller.bound}." if caller.bound else "."),
        )
    if wanted.project is not None and not sees(session, caller, wanted.project):
        raise InvalidInputError.at("project", f"no project {wanted.project}", "GET /v1/projects lists yours.")
    if wanted.person_id not in (None, caller.person_id) and not caller.may("person.change"):
        raise ForbiddenError("only an administrator makes keys for others", remedy="Make one for yourself.")
    person = find(session, wanted.person_id or caller.person_id)
    return _store(session, wanted, person, PERSON_PREFIX)


def _create_node_token(session: Session, caller: Caller, wanted: KeyRequest) -> NewKey:
    if not caller.may("cluster.change"):
        raise ForbiddenError("only an administrator makes tokens for nodes", remedy="Ask one.")
    for field in ("project", "person_id"):
        if getattr(wanted, field) is not None:
            raise InvalidInputError.at(field, "a node's token has none", "Leave it out.")
    return _store(session, wanted, None, NODE_PREFIX)


def _store(session: Session, wanted: KeyRequest, person: Person | None, prefix: str) -> NewKey:
    secret = prefix + secrets.token_urlsafe(SECRET_BYTES)
    row = ApiKey(
        id=f"key-{secrets.token_hex(8)}",
        name=wanted.name,
        role=wanted.role,
        person_id=person.id if person is not None else None,
        project_id=wanted.project,
        key_sha256=digest(secret),
        created_at=database_now(session),
    )
    session.add(row)
    return NewKey(key=secret, **dict(view(row, person.name if person is not None else None)))


def list_keys(session: Session, caller: Caller) -> list[KeyView]:
    """The caller's keys, newest first, including revoked ones; all keys for those who may see people.

    A key shows none that allows more than itself: whoever found it should learn nothing of them.
    """
    query = (
        select(ApiKey, Person.name)
        .outerjoin(Person, Person.id == ApiKey.person_id)
        .order_by(ApiKey.created_at.desc(), ApiKey.id)
    )
    if caller.may("person.read"):
        return [view(row, owner) for row, owner in session.execute(query)]
    own = session.execute(query.where(ApiKey.person_id == caller.person_id))
    return [view(row, owner) for row, owner in own if _manages(caller, row)]


def _manages(caller: Caller, row: ApiKey) -> bool:
    return row.person_id == caller.person_id and caller.covers(row.role, row.project_id)


def revoke_key(session: Session, caller: Caller, key_id: str) -> None:
    """Revoke a key and end the browser sessions that it opened. Revoking it again is no error.

    Raises NotFoundError, also for keys that the caller is not shown, or ConflictError for the last
    administrator's key, without which nobody could manage the service.
    """
    admins = session.scalars(
        select(ApiKey.id)
        .join(Person, Person.id == ApiKey.person_id)
        .where(ApiKey.role == "admin", ApiKey.project_id.is_(None), ApiKey.revoked_at.is_(None))
        .where(Person.cluster_role == "admin", Person.active)
        .with_for_update(of=ApiKey)
    ).all()
    row = session.get(ApiKey, key_id)
    if row is None or not (_manages(caller, row) or caller.may("person.change")):
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
    row = {
        "id": key_id,
        "name": f"from {setting}",
        "role": role,
        "person_id": administrator(session).id if role != "node" else None,
        "key_sha256": sha256,
        "created_at": now,
    }
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


def view(row: ApiKey, owner: str | None) -> KeyView:
    """The key as the API returns it."""
    return KeyView(
        id=row.id,
        name=row.name,
        role=cast(Role, row.role),
        project=row.project_id,
        person_id=row.person_id,
        owner=owner,
        created_at=row.created_at,
        revoked_at=row.revoked_at,
    )
