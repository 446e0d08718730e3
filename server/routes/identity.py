"""Keys, browser sessions and sign-in codes."""

from typing import Annotated, Literal, TypedDict, cast

from fastapi import APIRouter, Request, Response, Security, status

from powermean.contracts.api import LoginCode
from powermean.contracts.identity import KeyList, KeyRequest, Me, NewKey, SessionRequest, SessionView
from powermean.contracts.names import session_cookie
from server.errors import UnauthenticatedError
from server.identity import keys, people, sessions
from server.identity.callers import Caller
from server.routes.access import (
    KnownCallerRoute,
    May,
    browser_cookie,
    check_origin,
    session_secret,
)
from server.routes.dependencies import RequestDatabase


class _Cookie(TypedDict):
    """Arguments of Starlette's set_cookie and delete_cookie."""

    path: str
    secure: bool
    httponly: bool
    samesite: Literal["strict"]


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
        return keys.create_key(session, caller, wanted)


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
def revoke_key(key_id: str, caller: Self, database: RequestDatabase) -> None:
    """Also ends the browser sessions opened with it. Others' keys: administrators only."""
    with database.write() as session:
        keys.revoke_key(session, caller, key_id)


@router.post(
    "/login-codes",
    status_code=status.HTTP_201_CREATED,
    summary="Create a sign-in code",
)
def create_login_code(caller: Self, database: RequestDatabase) -> LoginCode:
    """Signs one browser in as yourself, within ten minutes: open /login/{code}."""
    with database.write() as session:
        return sessions.create_code(session, caller.person_id, caller.key_id)


@router.post(
    "/sessions",
    status_code=status.HTTP_201_CREATED,
    summary="Sign a browser in",
)
def open_session(
    proof: SessionRequest, request: Request, response: Response, database: RequestDatabase
) -> SessionView:
    """With a person's key or a sign-in code; the session is a cookie that scripts can't read."""
    if "origin" in request.headers:
        check_origin(request)
    with database.write() as session:
        if proof.code is not None:
            who = sessions.redeem_code(session, proof.code)
        else:
            who = sessions.redeem_key(session, cast(str, proof.key))
        secret, expires_at = sessions.open_session(session, who)
        role = people.highest(people.caller_of(session, who.person, who.key))
    response.set_cookie(
        session_cookie(request.headers["host"]),
        secret,
        max_age=int(sessions.SESSION_LIFETIME.total_seconds()),
        **_cookie_of(request),
    )
    return SessionView(name=who.person.name, role=role, expires_at=expires_at)


@router.delete(
    "/sessions",
    status_code=status.HTTP_204_NO_CONTENT,
    summary="Sign out",
    dependencies=[Security(browser_cookie)],
)
def close_session(request: Request, response: Response, database: RequestDatabase) -> None:
    """Ends this browser's session."""
    cookie = session_secret(request)
    if cookie is None:
        raise UnauthenticatedError("there is no browser session to end")
    check_origin(request)
    with database.write() as session:
        sessions.close_session(session, cookie)
    response.delete_cookie(session_cookie(request.headers["host"]), **_cookie_of(request))


def _cookie_of(request: Request) -> _Cookie:
    """How browsers keep the session: over TLS only where the service has it, below its own path only."""
    return {
        "path": request.scope["state"].get("root") or "/",
        "secure": request.url.scheme == "https",
        "httponly": True,
        "samesite": "strict",
    }
