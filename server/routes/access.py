"""Access: every route except health declares one of these FastAPI dependencies, which say who may come.

    def route(caller: Annotated[Caller, May("job.read")]) -> ...

People send a bearer key or a browser session, nodes their token, attempts the token that the server signed
for them: authentication.py finds out whose it is. A router made with `route_class=KnownCallerRoute` knows
them before it reads the body. Secrets are never logged here.
"""

import json
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from typing import Annotated, Any, cast

from fastapi import Depends, Request, Response, Security
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.concurrency import run_in_threadpool

from powermean.contracts.names import SESSION_COOKIE
from powermean.tokens import AttemptClaims
from server.connections import known_as
from server.db.session import Database
from server.errors import ForbiddenError, NotFoundError, ServiceError
from server.identity.callers import Caller
from server.identity.ownership import Named, NamedThings, named_in, names_something
from server.identity.policy import CLUSTER_VERBS, Verb, grant
from server.routes.admission import REFUSALS, Door
from server.routes.authentication import (
    KnownPerson,
    NodeCaller,
    find_attempt,
    find_first_node,
    find_node,
    find_person,
    find_renewing_attempt,
    looking_up,
    note_use,
    remembered,
)
from server.routes.json_bodies import JsonRequest, beside_the_loop
from server.routes.parameters import known_parameters
from server.routes.threads import in_one_thread

SLOW_BODY_S = 1.0  # whoever takes longer to send a body is looked at again before it has an effect

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


_LISTS = {
    "job": "GET /v1/jobs lists the jobs.",
    "dataset": "GET /v1/datasets lists the datasets.",
    "project": "GET /v1/projects lists yours.",
}


async def _allowed(verb: Verb, request: Request) -> Caller:
    """The caller, if they may do this to what the path names. What they can't see does not exist for them.

    Goes to a thread where the database has to be asked.
    """
    caller = await remembered(request)
    known: tuple[Caller, Named | None]
    things: NamedThings = request.app.state.named_things
    if caller is not None and not names_something(request.path_params):
        known = caller, None
    elif caller is not None and (named := await things.find(request.path_params)) is not None:
        known = caller, named
    else:
        with looking_up(request):
            person, named = await run_in_threadpool(_person_and_thing, request)
        if person.touch is not None:
            await run_in_threadpool(note_use, request.app.state.database, person.touch)
        known = person.caller, named
    request.state.caller, request.state.named = known  # also of whom the next line refuses
    return _checked(verb, *known)


def _person_and_thing(request: Request) -> tuple[KnownPerson, Named | None]:
    database: Database = request.app.state.database
    with database.read() as session:
        return find_person(request, session), named_in(session, request.path_params)


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


# The dependency that a route declares -> what it does, and how its caller is known.
_WORK: dict[object, tuple[str, Callable[[Request], Awaitable[object]]]] = {
    require_node: ("node.work", find_node),
    require_attempt: ("attempt.work", find_attempt),
    require_first_node: ("attempt.work", find_first_node),
    require_renewing_attempt: ("attempt.work", find_renewing_attempt),
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


CurrentNode = Annotated[NodeCaller, Depends(require_node)]
CurrentAttempt = Annotated[AttemptClaims, Depends(require_attempt)]
FirstNode = Annotated[AttemptClaims, Depends(require_first_node)]
RenewingAttempt = Annotated[AttemptClaims, Depends(require_renewing_attempt)]
