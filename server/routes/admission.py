"""What happens at the door of every route: rates are counted, refusals and changes are recorded.

access.py opens the door for each request. Routes and services know nothing of it, except that whoever makes
something notes its id (`server.audit.journal.note`).
"""

import re
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from powermean.contracts.audit import AuditEvent
from powermean.tokens import AttemptClaims
from server.audit.journal import Journal
from server.connections import Connections
from server.errors import ServiceError
from server.identity.callers import Caller
from server.identity.ownership import Named
from server.limits import Kind, RateLimits

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
REFUSALS = frozenset({401, 403})
_KEY = re.compile(r"pmn?_\S+|eyJ\S+")  # that somebody put where an id belongs
_CODE = re.compile(r"[\w-]{40,}")
_HIDDEN = "[hidden]"
_NO_TARGET = ("project", "path", "step", "index")  # of a path's parameters
_MOST = 200  # characters of a target


@dataclass(frozen=True)
class Door:
    """One route's. `identify` finds the caller, and raises for who may not come in; None: open to all."""

    path: str
    verb: str
    kind: Kind = "stranger"
    identify: Callable[[Request], Awaitable[object]] | None = None

    async def enter(self, request: Request) -> None:
        """Who calls (`request.state.caller`), if they may and have not come too often."""
        if self.identify is None:
            if request.method not in SAFE_METHODS:
                await _count(request, "stranger", _address(request))
            return
        request.state.identify = self.identify
        try:
            request.state.caller = await self.identify(request)
        except ServiceError as error:
            if error.status < 500:
                await self.refuse(request, error)
            raise
        await _count(request, self.kind, _whose(request) or _address(request))

    async def refuse(self, request: Request, error: ServiceError) -> None:
        """Count and record a refusal. Raises TooManyRequestsError for too many from one address."""
        await _count(request, "stranger", _address(request))
        if _whose(request) is None and "authorization" not in request.headers and self.identify is not None:
            return  # a browser that is not signed in
        journal: Journal = request.app.state.journal
        journal.refused(self._event(request, refusal=error))

    def changes(self, request: Request) -> AbstractContextManager[object]:
        """What people's requests write meanwhile is recorded; the open ones sign people in."""
        reads = request.method in SAFE_METHODS and self.identify is not None
        if reads or self.kind == "node":
            return nullcontext()
        journal: Journal = request.app.state.journal
        return journal.recording(self._event(request))

    def _event(self, request: Request, refusal: ServiceError | None = None) -> AuditEvent:
        caller = getattr(request.state, "caller", None)
        named: Named | None = getattr(request.state, "named", None)
        person = caller if isinstance(caller, Caller) else None
        return AuditEvent(
            at=datetime.now(UTC),
            actor=_whose(request),
            actor_name=person and person.name,
            key_id=person and person.key_id,
            address=request.client.host[:64] if request.client else None,
            verb=self.verb,
            request=f"{request.method} {self.path}",
            target=_target(request, named, trusted=refusal is None),
            project=named and named.project,
            outcome="allowed" if refusal is None else "refused",
            status=refusal and refusal.status,
            request_id=request.scope["state"].get("request_id"),
        )


async def _count(request: Request, kind: Kind, who: str) -> None:
    """One more request; in a thread only where Redis is asked."""
    rates: RateLimits = request.app.state.rates
    if rates.shared:
        await run_in_threadpool(rates.count, kind, who)
    else:
        rates.count(kind, who)


def _whose(request: Request) -> str | None:
    """The id of who calls; None: a stranger, or a node, whose token may be many nodes'."""
    caller = getattr(request.state, "caller", None)
    if isinstance(caller, Caller):
        return caller.person_id
    return caller.attempt_id if isinstance(caller, AttemptClaims) else None


def _address(request: Request) -> str:
    """Whom an address counts for: of IPv6 the network; a proxy that forwards no address is one client."""
    host = request.client.host if request.client else "unknown"
    connections: Connections = request.app.state.connections
    return connections.client_of(host) or host


def _target(request: Request, named: Named | None, *, trusted: bool) -> str | None:
    """The ids in the path. Whoever is refused may have typed anything there."""
    given = [str(value) for name, value in request.path_params.items() if name not in _NO_TARGET]
    target = _KEY.sub(_HIDDEN, "/".join(given) or (named.id if named else ""))[:_MOST]
    if not trusted and (named is None or named.project is None):
        target = _CODE.sub(_HIDDEN, target)
    return target or None
