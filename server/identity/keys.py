"""Bearer keys of people and nodes: random, shown once, stored and looked up by their sha256.

The lookup uses the hash of what was given, so its timing reveals nothing about stored keys.
"""

import hashlib
import logging
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

from pydantic import SecretStr
from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from powermean.contracts.identity import KeyRequest, KeyView, NewKey, Role
from powermean.errors import PowermeanError
from server.db.inserts import upsert
from server.db.models import ApiKey, BrowserSession, Person
from server.db.session import database_now
from server.errors import (
    ConflictError,
    ForbiddenError,
    InvalidInputError,
    NotFoundError,
    UnauthenticatedError,
)
from server.identity.callers import Caller
from server.identity.people import administrator, find, is_here
from server.identity.projects import sees

PERSON_PREFIX, NODE_PREFIX = "pm_", "pmn_"
SECRET_BYTES = 32
SHOWN = (
    9  # characters of a key that lists show: with pm_ before them, 36 bits are not shown to help guess 256
)
TOUCH = timedelta(minutes=5)  # how exactly the last use of a key or a session is known
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
    due: bool  # its use is to be written down


def find_key(session: Session, secret: str) -> FoundKey | None:
    """The key with this secret, if it is neither revoked nor too old and its person is still here."""
    query = (
        select(ApiKey, Person)
        .outerjoin(Person, Person.id == ApiKey.person_id)
        .where(ApiKey.key_sha256 == digest(secret), ApiKey.revoked_at.is_(None))
    )
    found = session.execute(query).one_or_none()
    if found is None:
        return None
    key, person = found
    now = database_now(session)
    if is_over(key, now) or (person is not None and not is_here(person, now)):
        return None
    return FoundKey(key, person, is_due(key.used_at, now))


def is_over(key: ApiKey, now: datetime) -> bool:
    """Whether the key was revoked or is too old."""
    return key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now)


def is_due(used_at: datetime | None, now: datetime) -> bool:
    """Whether a use has to be written down: not each one, so that reading stays reading."""
    return used_at is None or now - used_at >= TOUCH


def touch_key(session: Session, key_id: str) -> None:
    """The key is being used."""
    session.execute(update(ApiKey).where(ApiKey.id == key_id).values(used_at=database_now(session)))


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
    if wanted.node is not None:
        raise InvalidInputError.at("node", "only a node's token has one", "Leave it out.")
    person = find(session, wanted.person_id or caller.person_id)
    return key_for(
        session,
        person,
        name=wanted.name,
        role=wanted.role,
        project=wanted.project,
        expires_at=key_end(session, caller, wanted.days),
        made_by=caller.key_id,
    )


def create_pilot_token(session: Session, node_id: str, pool: str) -> NewKey:
    """A token for the one node that a pool starts, which is revoked at its end."""
    return key_for(session, None, name=_of_pool(pool), role="node", node=node_id)


def revoke_pilot_tokens(session: Session, node_id: str, pool: str) -> None:
    """The node is gone; revoking them again is no error."""
    keys = select(ApiKey).where(ApiKey.node == node_id, ApiKey.name == _of_pool(pool))
    for row in session.scalars(keys.where(ApiKey.revoked_at.is_(None))):
        row.revoked_at = database_now(session)


def _of_pool(pool: str) -> str:
    return f"pool {pool}"


def _create_node_token(session: Session, caller: Caller, wanted: KeyRequest) -> NewKey:
    if not caller.may("cluster.change"):
        raise ForbiddenError("only an administrator makes tokens for nodes", remedy="Ask one.")
    for field in ("project", "person_id"):
        if getattr(wanted, field) is not None:
            raise InvalidInputError.at(field, "a node's token has none", "Leave it out.")
    return key_for(
        session,
        None,
        name=wanted.name,
        role="node",
        node=wanted.node,
        expires_at=key_end(session, caller, wanted.days),
        made_by=caller.key_id,
    )


def key_end(session: Session, caller: Caller, days: int | None) -> datetime | None:
    """When a new key ends: never after the one that makes it. Raises UnauthenticatedError if that is over."""
    ends = [database_now(session) + timedelta(days=days)] if days is not None else []
    if caller.key_id is not None:
        maker = still_valid(session, caller.key_id)
        if maker.expires_at is not None:
            ends.append(maker.expires_at)
    return min(ends, default=None)


def still_valid(session: Session, maker_id: str) -> ApiKey:
    """The key that makes another one, locked: a revocation with `cascade` comes before that or finds both.

    Raises UnauthenticatedError if it is over: the new one would be missed.
    """
    maker = session.get_one(ApiKey, maker_id, with_for_update=True, populate_existing=True)
    if is_over(maker, database_now(session)):
        raise UnauthenticatedError("the key behind this was revoked or is too old", remedy="Sign in again.")
    return maker


def key_for(
    session: Session,
    person: Person | None,
    *,
    name: str,
    role: Role,
    project: str | None = None,
    node: str | None = None,
    expires_at: datetime | None = None,
    made_by: str | None = None,
) -> NewKey:
    """A new key of a person, or of a node; whether they may have it has been decided."""
    secret = (NODE_PREFIX if person is None else PERSON_PREFIX) + secrets.token_urlsafe(SECRET_BYTES)
    row = ApiKey(
        id=f"key-{secrets.token_hex(8)}",
        name=name,
        role=role,
        person_id=person.id if person is not None else None,
        project_id=project,
        node=node,
        key_sha256=digest(secret),
        prefix=secret[:SHOWN],
        created_at=database_now(session),
        expires_at=expires_at,
        made_by=made_by,
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


def revoke_key(session: Session, caller: Caller, key_id: str, *, cascade: bool = False) -> int:
    """Revoke a key and end the browser sessions that it opened; how many keys are revoked by that.

    With `cascade` also the keys that were made with it, and with those: who found a key may have made more.
    Revoking it again is no error.

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
    row = session.get(ApiKey, key_id, with_for_update=True)
    if row is None or not (_manages(caller, row) or caller.may("person.change")):
        raise NotFoundError(f"no key {key_id}", remedy="GET /v1/keys lists the keys.")
    revoked = _made_with(session, [row]) if cascade else [row]
    revoked = [one for one in revoked if one.revoked_at is None]
    ids = {one.id for one in revoked}
    if admins and set(admins) <= ids:
        raise ConflictError("this is the last administrator's key", remedy="Create another one first.")
    for one in revoked:
        one.revoked_at = database_now(session)
    for browser in session.scalars(select(BrowserSession).where(BrowserSession.key_id.in_(ids))):
        session.delete(browser)
    return len(revoked)


def _made_with(session: Session, keys: list[ApiKey]) -> list[ApiKey]:
    """These keys and all that came from them; a key is made once, so that there are no circles."""
    found = list(keys)
    while keys:
        query = select(ApiKey).where(ApiKey.made_by.in_([one.id for one in keys])).with_for_update()
        keys = list(session.scalars(query))
        found += keys
    return found


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
        node=row.node,
        prefix=row.prefix,
        created_at=row.created_at,
        expires_at=row.expires_at,
        used_at=row.used_at,
        revoked_at=row.revoked_at,
        made_by=row.made_by,
    )
