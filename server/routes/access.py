"""Who is asking: FastAPI dependencies that every route but health declares one of.

    def route(person: CurrentPerson) -> ...

People come with a bearer key or a browser session, nodes with their token, attempts with the token that the
server signed for them. Nothing here ever writes a secret to a log.
"""

from dataclasses import dataclass
from typing import Annotated, cast
from urllib.parse import urlsplit

from fastapi import Depends, Request, Security
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from powermean.contracts.identity import Role
from powermean.tokens import AttemptClaims, TokenError, TokenExpiredError, Verb, verify_attempt_token
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
    description="The token of an attempt: from its claim, renewed by every heartbeat.",
)
_cookie = APIKeyCookie(
    name=SESSION_COOKIE,
    auto_error=False,
    scheme_name="browser session",
    description="From POST /v1/sessions. Changing something needs this service's Origin header.",
)

_Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
_AttemptBearer = Annotated[HTTPAuthorizationCredentials | None, Security(_attempt_bearer)]
SessionSecret = Annotated[str | None, Security(_cookie)]


@dataclass(frozen=True)
class Person:
    """Somebody who may use the service."""

    key_id: str
    role: Role


def require_person(
    request: Request, database: RequestDatabase, bearer: _Bearer, cookie: SessionSecret
) -> Person:
    """Whoever asks, by key or by browser session; UnauthenticatedError or ForbiddenError otherwise."""
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
        raise ForbiddenError("a node's token is for its worker alone", remedy="Use a person's key.")
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
        raise ForbiddenError("this is for nodes alone", remedy="Use a node's token (pmn_...).")


def require_attempt(attempt_id: str, keys: RequestKeyPair, bearer: _AttemptBearer) -> AttemptClaims:
    """The attempt of the path, by its token. Whether it may still write is for the fence to say."""
    if bearer is None:
        raise UnauthenticatedError(
            "this needs an attempt's token", remedy="It comes with the attempt's claim."
        )
    try:
        claims = verify_attempt_token(bearer.credentials, keys.public_pem)
    except TokenExpiredError as error:
        raise UnauthenticatedError(
            str(error), remedy="Heartbeat in time: each reply brings a new token."
        ) from error
    except TokenError as error:
        raise UnauthenticatedError("this is not a token of an attempt at this service") from error
    if not claims.allows(Verb.REPORT):
        raise ForbiddenError("this token is not for reporting to the server")
    if claims.attempt_id != attempt_id:
        raise ForbiddenError(f"the token is not one of attempt {attempt_id}")
    return claims


def check_origin(request: Request) -> None:
    """Refuse what another site's page makes a signed-in browser send.

    A browser names the page's origin on every request that changes something. A proxy that ends TLS may make
    the request look like http here, so https origins of the same host pass too.
    """
    if request.method in SAFE_METHODS:
        return
    origin = urlsplit(request.headers.get("origin", ""))
    same_host = origin.netloc.lower() == request.headers.get("host", "").lower() != ""
    if not (same_host and origin.scheme in ("https", request.url.scheme)):
        raise ForbiddenError(
            "a browser session may only change things from this service's own pages",
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
        raise UnauthenticatedError("the browser session is over", remedy="Sign in again at /login.")
    return key


CurrentPerson = Annotated[Person, Depends(require_person)]
CurrentAdmin = Annotated[Person, Depends(require_admin)]
CurrentNode = Annotated[None, Depends(require_node)]
CurrentAttempt = Annotated[AttemptClaims, Depends(require_attempt)]
