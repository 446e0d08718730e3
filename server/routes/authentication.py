"""Who sends a request: a person by a key or a browser session, a node or an attempt by a token.

What they may do is decided in access.py. Secrets are never logged here.
"""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from urllib.parse import urlsplit

from fastapi import Request
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from powermean.contracts.names import session_cookie
from powermean.tokens import AttemptClaims, TokenError, TokenExpiredError, Verb, verify_attempt_token
from server.connections import Connections
from server.db.session import Database, DatabaseBusyError, DatabaseFullError, DatabaseMovedError
from server.errors import ForbiddenError, NotFirstNodeError, UnauthenticatedError
from server.identity.callers import Caller
from server.identity.keys import find_key, touch_key
from server.identity.people import caller_of
from server.identity.recent import RecentCallers
from server.identity.sessions import find_session, touch_session
from server.routes.admission import SAFE_METHODS

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class NodeCaller:
    """A node; `bound` is the only name that its token is for, if it is for one."""

    bound: str | None

    def check(self, node_id: str | None) -> None:
        """Raises ForbiddenError if the token is for another node."""
        if self.bound is not None and node_id != self.bound:
            raise ForbiddenError(
                f"this token is only for node {self.bound}", remedy="Give each node a token of its own."
            )


@dataclass(frozen=True)
class KnownPerson:
    """A caller, and what to note of this use of the key or the session, if that is due."""

    caller: Caller
    touch: Callable[[Session], None] | None


async def remembered(request: Request) -> Caller | None:
    """The person whose key was looked up a moment ago, or is being looked up for another request."""
    secret = _bearer_secret(request)
    recent: RecentCallers = request.app.state.callers
    return await recent.find_soon(secret) if secret is not None else None


def looking_up(request: Request) -> AbstractContextManager[None]:
    """While the database is asked who sends this request: others with the same key wait for that."""
    secret = _bearer_secret(request)
    recent: RecentCallers = request.app.state.callers
    return recent.looking_for(secret) if secret is not None else nullcontext()


def find_person(request: Request, session: Session) -> KnownPerson:
    """By key or by session. Raises UnauthenticatedError and ForbiddenError."""
    secret = _bearer_secret(request)
    if secret is not None:
        recent: RecentCallers = request.app.state.callers
        known = recent.find(secret)
        return KnownPerson(known, None) if known else _person_by_key(recent, session, secret)
    if (cookie := session_secret(request)) is not None:
        check_origin(request)
        opened = find_session(session, cookie)
        if opened is None:
            raise UnauthenticatedError("the browser session has ended", remedy="Sign in again at /login.")
        idle = timedelta(seconds=request.app.state.settings.session_idle_s)
        touch = partial(touch_session, id_sha256=opened.id_sha256, idle=idle) if opened.due else None
        return KnownPerson(caller_of(session, opened.who.person, opened.who.key), touch)
    raise UnauthenticatedError(
        "this needs a key", remedy="Send `Authorization: Bearer <key>`, or sign in at /login."
    )


def _person_by_key(recent: RecentCallers, session: Session, secret: str) -> KnownPerson:
    forgotten = recent.forgotten
    found = find_key(session, secret)
    if found is None:
        raise _unknown_key()
    if found.person is None:
        raise ForbiddenError("a node's token is only for its worker", remedy="Use a person's key.")
    caller = caller_of(session, found.person, found.key)
    recent.remember(secret, caller, forgotten)
    return KnownPerson(caller, partial(touch_key, key_id=found.key.id) if found.due else None)


def note_use(database: Database, touch: Callable[[Session], None] | None) -> None:
    """Note a use, every few minutes. A database that can't be written is no reason to refuse a reader."""
    if touch is None:
        return
    try:
        with database.write() as session:
            touch(session)
    except (DatabaseBusyError, DatabaseFullError, DatabaseMovedError, OperationalError) as error:
        log.warning("the use of a key or a session was not noted: %s", error)


async def find_node(request: Request) -> NodeCaller:
    """By its token; for the node in the path, if there is one."""
    return await run_in_threadpool(_check_node, request)


def _check_node(request: Request) -> NodeCaller:
    secret = _bearer_secret(request)
    if secret is None:
        raise UnauthenticatedError(
            "this needs a node's token", remedy="Set POWERMEAN_NODE_TOKEN for the worker."
        )
    database: Database = request.app.state.database
    with database.read() as session:
        found = find_key(session, secret)
    if found is None:
        raise _unknown_key()
    if found.person is not None:
        raise ForbiddenError("only nodes may do this", remedy="Use a node's token (pmn_...).")
    note_use(database, partial(touch_key, key_id=found.key.id) if found.due else None)
    node = NodeCaller(found.key.node)
    if "node_id" in request.path_params:
        node.check(request.path_params["node_id"])
    return node


async def find_renewing_attempt(request: Request) -> AttemptClaims:
    """The attempt in the path, by its token, which may have expired."""
    return await find_attempt(request, even_expired=True)


async def find_first_node(request: Request) -> AttemptClaims:
    """The attempt in the path, by the token of its first node."""
    claims = await find_attempt(request)
    if claims.node_rank > 0:
        raise NotFirstNodeError(claims.attempt_id, claims.node_rank)
    return claims


async def find_attempt(request: Request, *, even_expired: bool = False) -> AttemptClaims:
    """The attempt in the path, by its token. Not in a thread: the check takes less than the way there."""
    secret = _bearer_secret(request)
    if secret is None:
        raise UnauthenticatedError(
            "this needs an attempt's token", remedy="It comes with the attempt's claim."
        )
    try:
        public_pem = request.app.state.key_pair.public_pem
        claims = verify_attempt_token(secret, public_pem, even_expired=even_expired)
    except TokenExpiredError as error:
        raise UnauthenticatedError(str(error), remedy="Heartbeat: each reply brings a new token.") from error
    except TokenError as error:
        raise UnauthenticatedError("this is not an attempt token of this service") from error
    if not claims.allows(Verb.REPORT):
        raise ForbiddenError("this token is not for reporting to the server")
    if claims.attempt_id != request.path_params["attempt_id"]:
        raise ForbiddenError(f"the token does not belong to attempt {request.path_params['attempt_id']}")
    return claims


def session_secret(request: Request) -> str | None:
    """The secret in the browser's cookie of this service."""
    return request.cookies.get(session_cookie(request.headers.get("host", "")))


def browsers_own(request: Request) -> str | None:
    """The secret of the session by which the caller is known; None: it was a key."""
    return session_secret(request) if _bearer_secret(request) is None else None


def client_address(request: Request) -> str:
    """Whom to count tries for: an address, or a network of IPv6."""
    connections: Connections = request.app.state.connections
    ip = request.client.host if request.client is not None else ""
    return connections.client_of(ip) or ip


def _bearer_secret(request: Request) -> str | None:
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret if scheme.lower() == "bearer" and secret else None


def check_origin(request: Request) -> None:
    """Refuse requests that another site's page makes a signed-in browser send.

    A browser sends the page's origin with every request that changes something: the address in its Host
    header, or the service's public one, if a proxy replaces that header. Behind a proxy that terminates TLS
    the request looks like http here, so https origins of the same host are accepted too.
    """
    if request.method in SAFE_METHODS:
        return
    given = request.headers.get("origin", "").lower()
    if given and given == request.scope["state"].get("public_origin"):
        return
    origin = urlsplit(given)
    same_host = origin.netloc == request.headers.get("host", "").lower() != ""
    if not (same_host and origin.scheme in ("https", request.url.scheme)):
        raise ForbiddenError(
            "with a browser session, only this service's own pages can change things",
            remedy="Send an Origin header of this service, or use a bearer key. Behind a proxy, set "
            "POWERMEAN_PUBLIC_URL to the address that people use.",
        )


def _unknown_key() -> UnauthenticatedError:
    return UnauthenticatedError(
        "this key is not known or was revoked", remedy="Ask an administrator for a key."
    )
