"""The composition root: the one place where the server's parts meet."""

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache

from fastapi import APIRouter, FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from dashboard.app import create_dashboard
from powermean import __version__
from powermean.artefacts import ArtefactStore
from powermean.contracts.api import ErrorResponse
from powermean.tokens import ensure_key_pair
from server.artefacts import routes as artefact_routes
from server.cluster import engine_routes
from server.cluster import routes as cluster_routes
from server.cluster.loops import Loop
from server.cluster.relay import Relay
from server.cluster.scheduler import Scheduler
from server.db.session import Changes, Database
from server.error_handlers import install_error_handlers
from server.identity import routes as identity_routes
from server.jobs import attempt_routes
from server.jobs import routes as job_routes
from server.metrics import routes as metric_routes
from server.metrics.stream import EventHub
from server.middleware import Gate
from server.observability import install_observability
from server.queue import CelerySender, Sender, celery_app
from server.replays import routes as replay_routes
from server.settings import Settings

# Anything may be malformed, unknown, in conflict or unavailable; the shape is always the same.
_ERRORS: dict[int | str, dict[str, object]] = {
    400: {"model": ErrorResponse, "description": "The request cannot be read, or names another host."},
    401: {"model": ErrorResponse, "description": "No valid credential."},
    403: {"model": ErrorResponse, "description": "Not allowed."},
    404: {"model": ErrorResponse, "description": "There is no such thing."},
    409: {"model": ErrorResponse, "description": "Not in this state; `fenced`: not the current attempt."},
    413: {"model": ErrorResponse, "description": "The body is too large."},
    422: {"model": ErrorResponse, "description": "A field is wrong; `fields` says which."},
    500: {"model": ErrorResponse, "description": "An unexpected error."},
    503: {"model": ErrorResponse, "description": "Something that the service needs is not there right now."},
}


def create_app(settings: Settings, sender: Sender | None = None) -> FastAPI:
    """The server as an ASGI application; its database must be at the newest revision when it starts.

    `sender` takes the place of Celery.
    """
    database = Database(settings.database_url)
    artefacts = ArtefactStore(settings.artefacts_url)
    events = EventHub(database, settings.redis_url)
    loops = _loops(settings, database, artefacts, sender or CelerySender(celery_app(settings)))
    if loops:
        database.listen(lambda changed: _wake(loops, changed))

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await events.start()
        for loop in loops:
            loop.start()
        try:
            yield
        finally:
            for loop in loops:
                await run_in_threadpool(loop.stop)
            await events.stop()
            database.close()

    app = FastAPI(
        title="powermean",
        version=__version__,
        description="Group-based reinforcement learning of language models, as a service.",
        lifespan=lifespan,
        responses=_ERRORS,
        openapi_url=None,  # the schema is committed as openapi.json; nothing but health answers without a key
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.database = database
    app.state.artefacts = artefacts
    app.state.key_pair = ensure_key_pair(settings.secrets_dir)
    app.state.events = events
    app.router.routes.extend(_api().routes)
    install_observability(app)
    app.router.default = _Elsewhere(create_dashboard(app))
    install_error_handlers(app)
    app.add_middleware(
        Gate,
        hosts=settings.hosts,
        max_body=settings.max_body,
        max_body_of={"/v1/datasets": settings.max_dataset},
    )
    return app


@cache
def _api() -> APIRouter:
    """All routes, which know of no app: made once for a process, as that takes longer than many a test."""
    api = APIRouter(responses=_ERRORS, redirect_slashes=False)
    for routes in (
        identity_routes,
        job_routes,
        attempt_routes,
        cluster_routes,
        engine_routes,
        metric_routes,
        replay_routes,
        artefact_routes,
    ):
        api.include_router(routes.router)
    return api


class _Elsewhere:
    """What is not a route of the API is a page of the dashboard. A mount would take the API's 405s away."""

    def __init__(self, dashboard: ASGIApp) -> None:
        self._dashboard = dashboard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            raise HTTPException(404, f"the API has no {scope['path']}")
        await self._dashboard(scope, receive, send)


def _loops(
    settings: Settings, database: Database, artefacts: ArtefactStore, sender: Sender
) -> tuple[Loop, ...]:
    """The threads of this replica. Deciding and sending are apart: a broker that hangs stops no lease."""
    if not settings.scheduler:
        return ()
    holder = f"{socket.gethostname()[:40]}-{os.getpid()}-{secrets.token_hex(4)}"
    scheduler = Scheduler(database, settings, artefacts, holder)
    relay = Relay(database, settings, sender)
    return (
        Loop("scheduler", scheduler.turn, settings.poll_s, at_end=scheduler.stop),
        Loop("relay", relay.turn, settings.poll_s),
    )


def _wake(loops: tuple[Loop, ...], changed: Changes) -> None:
    if changed.plan:
        for loop in loops:
            loop.wake()
