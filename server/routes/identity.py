"""Who one is, and keys."""

from typing import Annotated

from fastapi import APIRouter, Query, status

from powermean.contracts.identity import KeyList, KeyRequest, Me, NewKey
from server.audit.journal import note
from server.identity import keys, people
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import RequestDatabase

router = APIRouter(prefix="/v1", tags=["identity"], route_class=KnownCallerRoute)

Self = Annotated[Caller, May("self.use")]


@router.get("/me", summary="Who am I?")
def get_me(caller: Self, database: RequestDatabase) -> Me:
    """The caller's account, its projects, and what this key allows."""
    with database.read() as session:
        return people.me(session, caller)


@router.post("/keys", status_code=status.HTTP_201_CREATED, summary="Create a key")
def create_key(wanted: KeyRequest, caller: Self, database: RequestDatabase) -> NewKey:
    """For yourself; the key is shown only here. Administrators make them for others, and nodes' tokens."""
    with database.write() as session:
        made = keys.create_key(session, caller, wanted)
        note(target=made.id, project=made.project, role=made.role, owner=made.person_id)
        return made


@router.get("/keys", summary="List the keys")
def list_keys(caller: Self, database: RequestDatabase) -> KeyList:
    """Yours, newest first, including revoked ones, without the keys themselves. Administrators see all."""
    with database.read() as session:
        return KeyList(items=tuple(keys.list_keys(session, caller)))


@router.delete(
    "/keys/{key_id}",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Revoke a key",
)
def revoke_key(
    key_id: str,
    caller: Self,
    database: RequestDatabase,
    cascade: Annotated[bool, Query(description="Revoke the keys that were made with it, too.")] = False,
) -> None:
    """Also ends the browser sessions opened with it. Others' keys: administrators only."""
    with database.write() as session:
        revoked = keys.revoke_key(session, caller, key_id, cascade=cascade)
        note(keys=str(revoked) if cascade else None)
