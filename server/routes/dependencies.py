"""Parts of the running server that routes use, as parameter types.

def route(database: RequestDatabase, settings: RequestSettings) -> ...
"""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

from fastapi import Depends, Request

from powermean.artefacts import ArtefactStore
from powermean.contracts.api import LoginCode
from powermean.tokens import KeyPair
from server.audit.journal import Journal
from server.cluster.queue_view import QueueView
from server.db.scoped import ScopedDatabase
from server.db.session import Database
from server.identity.oidc import Provider
from server.identity.throttle import Throttle
from server.metrics.reports import Reports
from server.metrics.stream import EventHub
from server.observability import Observatory
from server.settings import Settings
from server.vault.key_file import KeyService


def _state(name: str) -> Callable[[Request], Awaitable[Any]]:
    async def read(request: Request) -> Any:
        return getattr(request.app.state, name)

    return read


async def _callers_database(request: Request) -> ScopedDatabase:
    return ScopedDatabase(request.app.state.database, request.state.caller.visible)


# What people's routes take: it shows what the caller may see. The other is for nodes and attempts.
CallersDatabase = Annotated[ScopedDatabase, Depends(_callers_database)]
RequestDatabase = Annotated[Database, Depends(_state("database"))]
RequestSettings = Annotated[Settings, Depends(_state("settings"))]
RequestStore = Annotated[ArtefactStore, Depends(_state("artefacts"))]
RequestReports = Annotated[Reports, Depends(_state("reports"))]
RequestEvents = Annotated[EventHub, Depends(_state("events"))]
RequestVault = Annotated[KeyService, Depends(_state("vault"))]
RequestKeyPair = Annotated[KeyPair, Depends(_state("key_pair"))]
RequestJournal = Annotated[Journal, Depends(_state("journal"))]
RequestQueue = Annotated[QueueView, Depends(_state("queue"))]
RequestThrottle = Annotated[Throttle, Depends(_state("throttle"))]
RequestProvider = Annotated[Provider | None, Depends(_state("provider"))]
RequestObservatory = Annotated[Observatory, Depends(_state("observatory"))]


def public_address(request: Request, settings: Settings, path: str) -> str:
    """The full address of a page, as people elsewhere open it."""
    here = settings.public_url or f"{request.url.scheme}://{request.headers['host']}"
    return here + path


def login_code(request: Request, settings: Settings, code: str, expires_at: datetime) -> LoginCode:
    """A one-time code with the page that takes it."""
    url = public_address(request, settings, f"/login/{code}")
    return LoginCode(code=code, url=url, expires_at=expires_at)
