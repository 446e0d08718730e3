"""Authentication: every route except health declares one of these FastAPI dependencies.

    def route(caller: Annotated[Caller, May("job.read")]) -> ...

People send a bearer key or a browser session, nodes their token, attempts the token that the server signed
for them. A router made with `route_class=KnownCallerRoute` knows them before it reads the body. Secrets are
never logged here.
"""

import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache, partial
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

from fastapi import Depends, Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.base import SecurityBase
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from powermean.contracts.names import SESSION_COOKIE, session_cookie
from powermean.tokens import AttemptClaims, TokenError, TokenExpiredError, verify_attempt_token
from powermean.tokens import Verb as TokenVerb
from server.connections import Connections, known_as
from server.db.session import Database, DatabaseBusyError, DatabaseFullError, DatabaseMovedError
from server.errors import (
    ForbiddenError,
    NotFirstNodeError,
    NotFoundError,
    ServiceError,
    UnauthenticatedError,
)
from server.identity.callers import Caller
from server.identity.keys import find_key, touch_key
from server.identity.ownership import Named, named_in, names_something
from server.identity.people import caller_of
from server.identity.policy import CLUSTER_VERBS, Verb, grant
from server.identity.recent import RecentCallers
from server.identity.sessions import find_session, touch_session
from server.routes.admission import REFUSALS, SAFE_METHODS, Door
from server.routes.json_bodies import JsonRequest, beside_the_loop
from server.routes.parameters import known_parameters
from server.routes.threads import in_one_thread

SLOW_BODY_S = 1.0  # whoever takes longer to send a body is looked at again before it has an effect

log = logging.getLogger(__name__)

_bearer = HTTPBearer(
    auto_error=False, scheme_name="key", description="A person's key (pm_...) or a node's token (pmn_...)."
)
_attempt_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="attempt token",
    bearerFormat="JWT",
    description="An attempt's token, from its claim, renewed by every heartbeat.",
)
browser_cookie = APIKeyCookie(
    name=SESSION_COOKIE,
    auto_error=False,
    scheme_name="browser session",
    description="From POST /v1/sessions; a service at a port of its own has that in the name, as in "
    f"{SESSION_COOKIE}_8700. Requests that change something need this service's Origin header.",
)

_Bearer = Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]
_AttemptBearer = Annotated[HTTPAuthorizationCredentials | None, Security(_attempt_bearer)]
_Cookie = Annotated[str | None, Security(browser_cookie)]


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


class KnownCallerRoute(APIRoute):
    """Knows its caller before it reads the body: a stranger's is never parsed. All routers are made of these.

    FastAPI parses the body before it calls the dependencies, so that they only hand on whom the route found.
    """

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """See APIRoute."""
        super().__init__(path, in_one_thread(endpoint), **options)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See APIRoute."""
        documented, self.dependant = self.dependant, _without_schemes(self.dependant)
        handle = super().get_route_handler()
        self.dependant = documented
        handle = beside_the_loop(known_parameters(handle, self.dependant))
        door = _door(self.path, self.name, self.dependant)
        has_body = self.body_field is not None

        async def handle_known(request: Request) -> Response:
            await door.enter(request)
            if door.kind != "stranger":
                known_as(door.kind)
            slow = False
            if has_body:
                request = JsonRequest(request.scope, request.receive)
                began = time.monotonic()
                with suppress(json.JSONDecodeError):  # FastAPI reports it, if it wants JSON
                    await request.json()
                slow = door.identify is not None and time.monotonic() - began > SLOW_BODY_S
            try:
                if slow:
                    await known_again(request)
                with door.changes(request):
                    return await handle(request)
            except ServiceError as error:
                if error.status in REFUSALS:
                    await door.refuse(request, error)
                raise

        return handle_known


def _without_schemes(dependant: Dependant) -> Dependant:
    """Without the security schemes, which openapi.json needs and requests do not: the door has looked."""
    needed = [one for one in dependant.dependencies if not isinstance(one.call, SecurityBase)]
    return replace(dependant, dependencies=[_without_schemes(one) for one in needed])


class Requires:
    """The dependency of a route for people: what the policy calls what it does."""

    def __init__(self, verb: Verb) -> None:
        self.verb = verb

    async def __call__(self, request: Request, _bearer: _Bearer = None, _cookie: _Cookie = None) -> Caller:
        return cast(Caller, request.state.caller)


def May(verb: Verb) -> Any:  # noqa: N802 - reads as a type: Annotated[Caller, May("job.read")]
    """Declares what a route does; whoever may not is refused before the body is read."""
    return Depends(_requires(verb))


@cache
def _requires(verb: Verb) -> Requires:
    return Requires(verb)


async def require_node(request: Request, _bearer: _Bearer = None) -> NodeCaller:
    """Only nodes, by their token."""
    return cast(NodeCaller, request.state.caller)


async def require_attempt(request: Request, _bearer: _AttemptBearer = None) -> AttemptClaims:
    """The attempt in the path, by its token. The fence decides whether it may still write."""
    return cast(AttemptClaims, request.state.caller)


async def require_first_node(request: Request, _bearer: _AttemptBearer = None) -> AttemptClaims:
    """As `require_attempt`, of the attempt's first node: it alone tells of steps, checkpoints and results."""
    return cast(AttemptClaims, request.state.caller)


async def require_renewing_attempt(request: Request, _bearer: _AttemptBearer = None) -> AttemptClaims:
    """As `require_attempt`, for the heartbeat alone: a token that expired during a partition will do.

    The fence refuses it unless the attempt is still the job's current one, which then gets a fresh token.
    """
    return cast(AttemptClaims, request.state.caller)


@dataclass(frozen=True)
class _Known:
    """A caller, and what to write down of this use of the key or the session, if that is due."""

    caller: Caller
    touch: Callable[[Session], None] | None


def _known(request: Request, session: Session) -> _Known:
    secret = _bearer_secret(request)
    if secret is not None:
        recent: RecentCallers = request.app.state.callers
        remembered = recent.find(secret)
        return _Known(remembered, None) if remembered else _known_by_key(recent, session, secret)
    if (cookie := session_secret(request)) is not None:
        check_origin(request)
        opened = find_session(session, cookie)
        if opened is None:
            raise UnauthenticatedError("the browser session has ended", remedy="Sign in again at /login.")
        idle = timedelta(seconds=request.app.state.settings.session_idle_s)
        touch = partial(touch_session, id_sha256=opened.id_sha256, idle=idle) if opened.due else None
        return _Known(caller_of(session, opened.who.person, opened.who.key), touch)
    raise UnauthenticatedError(
        "this needs a key", remedy="Send `Authorization: Bearer <key>`, or sign in at /login."
    )


def _known_by_key(recent: RecentCallers, session: Session, secret: str) -> _Known:
    forgotten = recent.forgotten
    found = find_key(session, secret)
    if found is None:
        raise _unknown_key()
    if found.person is None:
        raise ForbiddenError("a node's token is only for its worker", remedy="Use a person's key.")
    caller = caller_of(session, found.person, found.key)
    recent.remember(secret, caller, forgotten)
    return _Known(caller, partial(touch_key, key_id=found.key.id) if found.due else None)


_LISTS = {
    "job": "GET /v1/jobs lists the jobs.",
    "dataset": "GET /v1/datasets lists the datasets.",
    "project": "GET /v1/projects lists yours.",
}


async def _allowed(verb: Verb, request: Request) -> Caller:
    """The caller, if they may do this to what the path names. What they can't see does not exist for them.

    Goes to a thread where the database has to be asked.
    """
    secret = _bearer_secret(request)
    recent: RecentCallers = request.app.state.callers
    caller = recent.find(secret) if secret is not None else None
    known: tuple[Caller, Named | None]
    if caller is not None and not names_something(request.path_params):
        known = caller, None
    else:
        known = await run_in_threadpool(_caller_and_thing, request)
    request.state.caller, request.state.named = known  # also of whom the next line refuses
    return _checked(verb, *known)


def _caller_and_thing(request: Request) -> tuple[Caller, Named | None]:
    database: Database = request.app.state.database
    with database.read() as session:
        known, named = _known(request, session), named_in(session, request.path_params)
    _write_down(database, known.touch)
    return known.caller, named


def _checked(verb: Verb, caller: Caller, named: Named | None) -> Caller:
    if named is None:
        if verb in CLUSTER_VERBS and not caller.may(verb):
            raise ForbiddenError("only an administrator may do this", remedy="Use an administrator's key.")
        return caller
    if named.project is None or not (caller.visible is None or named.project in caller.visible):
        raise NotFoundError(f"no {named.kind} {named.id}", remedy=_LISTS[named.kind])
    if not caller.may(verb, named.project, named.owner):
        whom = "an administrator" if grant(verb, "maintainer") == "no" else "one of its maintainers"
        raise ForbiddenError(
            f"you may not do this in project {named.project} ({verb})", remedy=f"Ask {whom}."
        )
    return caller


def _write_down(database: Database, touch: Callable[[Session], None] | None) -> None:
    """Note a use, every few minutes. A database that can't be written is no reason to refuse a reader."""
    if touch is None:
        return
    try:
        with database.write() as session:
            touch(session)
    except (DatabaseBusyError, DatabaseFullError, DatabaseMovedError, OperationalError) as error:
        log.warning("the use of a key or a session was not noted: %s", error)


async def _node(request: Request) -> NodeCaller:
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
    _write_down(database, partial(touch_key, key_id=found.key.id) if found.due else None)
    node = NodeCaller(found.key.node)
    if "node_id" in request.path_params:
        node.check(request.path_params["node_id"])
    return node


async def _renewing_attempt(request: Request) -> AttemptClaims:
    return await _attempt(request, even_expired=True)


async def _first_node(request: Request) -> AttemptClaims:
    claims = await _attempt(request)
    if claims.node_rank > 0:
        raise NotFirstNodeError(claims.attempt_id, claims.node_rank)
    return claims


async def _attempt(request: Request, *, even_expired: bool = False) -> AttemptClaims:
    """Not in a thread: the check takes less than the way there."""
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
    if not claims.allows(TokenVerb.REPORT):
        raise ForbiddenError("this token is not for reporting to the server")
    if claims.attempt_id != request.path_params["attempt_id"]:
        raise ForbiddenError(f"the token does not belong to attempt {request.path_params['attempt_id']}")
    return claims


# The dependency that a route declares -> what it does, and how its caller is known.
_WORK: dict[object, tuple[str, Callable[[Request], Awaitable[object]]]] = {
    require_node: ("node.work", _node),
    require_attempt: ("attempt.work", _attempt),
    require_first_node: ("attempt.work", _first_node),
    require_renewing_attempt: ("attempt.work", _renewing_attempt),
}


async def known_again(request: Request) -> None:
    """Find the caller anew after something that they can make last: their rights may have ended meanwhile.

    Raises as the first time.
    """
    request.state.caller = await request.state.identify(request)


async def is_still_allowed(request: Request) -> bool:
    """Whether the caller would be let in again, for answers that go on for long."""
    try:
        await known_again(request)
    except ServiceError:
        return False
    return True


def _door(path: str, name: str, dependant: Dependant) -> Door:
    """By the outermost dependency that says who may come."""
    around = [dependant]
    while around:
        for one in around:
            if isinstance(one.call, Requires):
                return Door(path, one.call.verb, "person", partial(_allowed, one.call.verb))
            if one.call in _WORK:
                verb, identify = _WORK[one.call]
                return Door(path, verb, "node", identify)
        around = [inner for one in around for inner in one.dependencies]
    return Door(path, name)


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


CurrentNode = Annotated[NodeCaller, Depends(require_node)]
CurrentAttempt = Annotated[AttemptClaims, Depends(require_attempt)]
FirstNode = Annotated[AttemptClaims, Depends(require_first_node)]
RenewingAttempt = Annotated[AttemptClaims, Depends(require_renewing_attempt)]
