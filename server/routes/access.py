"""Authentication: every route except health declares one of these FastAPI dependencies.

    def route(person: CurrentPerson) -> ...

People send a bearer key or a browser session, nodes their token, attempts the token that the server signed
for them. Secrets are never logged here.
"""

from dataclasses import dataclass
from typing import Annotated, cast
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from powermean.contracts.identity import Role
from powermean.tokens import (
    AttemptClaims,
    KeyPair,
    TokenError,
    TokenExpiredError,
    Verb,
    verify_attempt_token,
)
from server.db.models import ApiKey
from server.db.session import Database
from server.errors import ForbiddenError, UnauthenticatedError
from server.identity.keys import find_key
from server.identity.sessions import find_session
from server.routes.dependencies import RequestDatabase, RequestKeyPair

SESSION_COOKIE = "powermean_session"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_bearer = HTTPBearer(
    auto_error=False, scheme_name="key", description="A person's key (pm_...) or a node's token (pmn_...)."
)
_attempt_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="attempt token",
    bearerFormat="JWT",
    description="An attempt's token, from its claim, renewed by every heartbeat.",
)
_cookie = APIKeyCookie(
    name=SESSION_COOKIE,
    auto_error=False,
    scheme_name="browser session",
    description="From POST /v1/sessions. Requests that change something need this service's Origin header.",
)

_Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
_AttemptBearer = Annotated[HTTPAuthorizationCredentials | None, Security(_attempt_bearer)]
SessionSecret = Annotated[str | None, Security(_cookie)]


@dataclass(frozen=True)
class Person:
    """A person or program that may use the service."""

    key_id: str
    role: Role


def require_person(
    request: Request, database: RequestDatabase, bearer: _Bearer, cookie: SessionSecret
) -> Person:
    """The caller, by key or browser session; otherwise raises UnauthenticatedError or ForbiddenError."""
    if bearer is not None:
        key = _key_of(database, bearer.credentials)
    elif cookie is not None:
        check_origin(request)
        key = _signed_in(database, cookie)
    else:
        raise UnauthenticatedError(
            "this needs a key", remedy="Send `Authorization: Bearer <key>`, or sign in at /login."
        )
    if key.role == "node":
        raise ForbiddenError("a node's token is only for its worker", remedy="Use a person's key.")
    return Person(key.id, cast(Role, key.role))


def require_admin(person: Annotated[Person, Depends(require_person)]) -> Person:
    """An administrator."""
    if person.role != "admin":
        raise ForbiddenError("only an administrator may do this", remedy="Use an administrator's key.")
    return person


def require_node(database: RequestDatabase, bearer: _Bearer) -> None:
    """Only nodes, by their token."""
    if bearer is None:
        raise UnauthenticatedError(
            "this needs a node's token", remedy="Set POWERMEAN_NODE_TOKEN for the worker."
        )
    key = _key_of(database, bearer.credentials)
    if key.role != "node":
        raise ForbiddenError("only nodes may do this", remedy="Use a node's token (pmn_...).")


def require_attempt(attempt_id: str, keys: RequestKeyPair, bearer: _AttemptBearer) -> AttemptClaims:
    """The attempt in the path, by its token. The fence decides whether it may still write."""
    return _attempt(attempt_id, keys, bearer, even_expired=False)


def require_renewing_attempt(attempt_id: str, keys: RequestKeyPair, bearer: _AttemptBearer) -> AttemptClaims:
    """As `require_attempt`, for the heartbeat alone: a token that expired during a partition will do.

    The fence refuses it unless the attempt is still the job's current one, which then gets a fresh token.
    """
    return _attempt(attempt_id, keys, bearer, even_expired=True)


def _attempt(
    attempt_id: str, keys: KeyPair, bearer: HTTPAuthorizationCredentials | None, *, even_expired: bool
) -> AttemptClaims:
    if bearer is None:
        raise UnauthenticatedError(
            "this needs an attempt's token", remedy="It comes with the attempt's claim."
        )
    try:
        claims = verify_attempt_token(bearer.credentials, keys.public_pem, even_expired=even_expired)
    except TokenExpiredError as error:
        raise UnauthenticatedError(str(error), remedy="Heartbeat: each reply brings a new token.") from error
    except TokenError as error:
        raise UnauthenticatedError("this is not an attempt token of this service") from error
    if not claims.allows(Verb.REPORT):
        raise ForbiddenError("this token is not for reporting to the server")
    if claims.attempt_id != attempt_id:
        raise ForbiddenError(f"the token does not belong to attempt {attempt_id}")
    return claims


def check_origin(request: Request) -> None:
    """Refuse requests that another site's page makes a signed-in browser send.

    A browser sends the page's origin with every request that changes something. Behind a proxy that
    terminates TLS the request looks like http here, so https origins of the same host are accepted too.
    """
    if request.method in SAFE_METHODS:
        return
    origin = urlsplit(request.headers.get("origin", ""))
    same_host = origin.netloc.lower() == request.headers.get("host", "").lower() != ""
    if not (same_host and origin.scheme in ("https", request.url.scheme)):
        raise ForbiddenError(
            "with a browser session, only this service's own pages can change things",
            remedy="Send an Origin header of this service, or use a bearer key.",
        )


def _key_of(database: Database, secret: str) -> ApiKey:
    with database.read() as session:
        key = find_key(session, secret)
    if key is None:
        raise UnauthenticatedError(
            "this key is not known or was revoked", remedy="Ask an administrator for a key."
        )
    return key


def _signed_in(database: Database, secret: str) -> ApiKey:
    with database.read() as session:
        key = find_session(session, secret)
    if key is None:
        raise UnauthenticatedError("the browser session has ended", remedy="Sign in again at /login.")
    return key


CurrentPerson = Annotated[Person, Depends(require_person)]
CurrentAdmin = Annotated[Person, Depends(require_admin)]
CurrentNode = Annotated[None, Depends(require_node)]
CurrentAttempt = Annotated[AttemptClaims, Depends(require_attempt)]
RenewingAttempt = Annotated[AttemptClaims, Depends(require_renewing_attempt)]
