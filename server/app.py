"""The composition root: the one place where the server's parts meet."""

from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import DEFAULT_EXCLUDED_CONTENT_TYPES, GZipMiddleware
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from dashboard.app import create_dashboard
from powermean import __version__
from powermean.artefacts import ArtefactStore
from powermean.tokens import KeyPair, ensure_key_pair
from server.audit.journal import Journal
from server.cluster.cleaner import Cleaner
from server.cluster.loops import Loop, stop_all
from server.cluster.presence import BEAT_S, Presence, new_id
from server.cluster.queue_view import QueueView
from server.cluster.relay import Relay
from server.cluster.scheduler import Scheduler
from server.connections import Connections
from server.db.session import Changes, Database
from server.error_handlers import install_error_handlers
from server.identity.oidc import Provider
from server.identity.ownership import NamedThings
from server.identity.recent import RecentCallers
from server.identity.throttle import Throttle
from server.jobs.cancels import line_of_cancels
from server.jobs.submits import Submits
from server.limits import RateLimits
from server.metrics.reports import Reports
from server.metrics.stream import EventHub
from server.middleware import Gate
from server.observability import Observatory
from server.pools.start import pool_loops
from server.queue import CelerySender, Sender, celery_app
from server.request_log import RequestLog
from server.routes.api import api_routes
from server.settings import Settings
from server.vault.key_file import KeyFile

# Event streams must not wait in a buffer; files of models and datasets are large and hardly get smaller.
NOT_COMPRESSED = (*DEFAULT_EXCLUDED_CONTENT_TYPES, "application/octet-stream")
MAX_BODY = 512 * 1024  # bytes; the longest spec fits
CLEANER_PAUSE_S = 10.0
SEAL_S = 1.0  # pause before what was done is in the chain of the audit log
MAX_SIGN_IN = 4096  # the only bodies that are read from callers who are not known yet


def create_app(settings: Settings, sender: Sender | None = None) -> FastAPI:
    """The server as an ASGI application; its database must be at the newest revision when it starts.

    `sender` replaces Celery.
    """
    database = Database(settings.database_url, settings.statement_s)
    artefacts = ArtefactStore(settings.artefacts_url)
    events = EventHub(database, settings.redis_url, most_streams=settings.max_connections * 3 // 8)
    key_pair = ensure_key_pair(settings.secrets_dir, settings.attempt_public_key)
    me, send = new_id(), sender or CelerySender(celery_app(settings))
    loops = _loops(settings, database, artefacts, send, me, key_pair)

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await events.start()
        for loop in (*loops, sealing, presence):
            loop.start()
        try:
            yield
        finally:
            await run_in_threadpool(stop_all, (*loops, sealing, presence))
            for line in (named_things, submits, cancels, reports):
                await run_in_threadpool(line.close)
            await events.stop()
            database.close()

    app = FastAPI(
        title="powermean",
        version=__version__,
        description="Group-based reinforcement learning of language models, as a service.",
        lifespan=lifespan,
        openapi_url=None,  # the schema is committed as openapi.json; nothing but health answers without a key
        redirect_slashes=False,
    )
    app.state.settings = settings
    app.state.loops = loops
    app.state.database = database
    app.state.artefacts = artefacts
    app.state.key_pair = key_pair
    app.state.vault = KeyFile.ensure(settings.secrets_dir)
    app.state.events = events
    app.state.reports = reports = Reports(database)
    app.state.uploads = Counter()  # by person
    app.state.rates = RateLimits(settings)
    app.state.journal = journal = Journal(database, app.state.key_pair, settings.secrets_dir)
    sealing = Loop("audit", journal.turn, SEAL_S, at_end=journal.stop)
    here = Presence(database, settings, me, app.state.key_pair.public_pem)
    presence = Loop("presence", here.turn, BEAT_S, at_end=here.leave)
    app.state.callers = RecentCallers(database)
    app.state.submits = submits = Submits(database, settings.allowed_models)
    app.state.named_things = named_things = NamedThings(database)
    app.state.cancels = cancels = line_of_cancels(database)
    app.state.connections = connections = Connections(
        settings.max_connections, settings.max_connections_per_client, settings.trusted_proxies
    )
    app.state.throttle = Throttle(settings)
    app.state.queue = QueueView(database, settings)
    app.state.provider = _provider(settings)
    app.state.observatory = observatory = Observatory(settings, database, artefacts, events, connections, me)
    app.router.routes.extend(sorted(api_routes(), key=_match_order))
    app.add_middleware(GZipMiddleware, compresslevel=5, exclude_content_types=NOT_COMPRESSED)
    app.add_middleware(RequestLog, seconds=observatory.requests)
    app.router.default = _Elsewhere(create_dashboard(app))
    install_error_handlers(app)
    app.add_middleware(
        Gate,
        connections=connections,
        hosts=settings.hosts,
        max_body=MAX_BODY,
        max_body_of={
            "/v1/datasets": settings.max_dataset,
            "/v1/attempts/": settings.max_body,
            "/v1/nodes/": settings.max_body,
            "/v1/sessions": MAX_SIGN_IN,
            "/v1/sessions/oidc": MAX_SIGN_IN,
            "/v1/device-codes": MAX_SIGN_IN,
            "/v1/device-codes/": MAX_SIGN_IN,
            "/login": MAX_SIGN_IN,
        },
        public_url=settings.public_url,
    )
    return app


def _provider(settings: Settings) -> Provider | None:
    """Where people sign in, if they do so elsewhere."""
    if settings.oidc_issuer is None or settings.oidc_client_id is None:
        return None
    secret = settings.oidc_client_secret
    return Provider(
        settings.oidc_issuer,
        settings.oidc_client_id,
        secret.get_secret_value() if secret is not None else None,
        settings.oidc_scopes,
    )


def _match_order(route: BaseRoute) -> int:
    """Routes are tried one after another: those that are asked most often first."""
    often = ("/v1/attempts/", "/v1/jobs")
    path = getattr(route, "path", "")
    return next((place for place, start in enumerate(often) if path.startswith(start)), len(often))


class _Elsewhere:
    """Everything that is not an API route goes to the dashboard. A mount would swallow the API's 405s."""

    def __init__(self, dashboard: ASGIApp) -> None:
        self._dashboard = dashboard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            raise HTTPException(404, f"the API has no {scope['path']}")
        await self._dashboard(scope, receive, send)


def _loops(
    settings: Settings,
    database: Database,
    artefacts: ArtefactStore,
    sender: Sender,
    holder: str,
    keys: KeyPair,
) -> tuple[Loop, ...]:
    """This replica's threads. Scheduling and sending are separate, so a hanging broker delays no lease."""
    if not settings.scheduler:
        return ()
    scheduler = Scheduler(database, settings, artefacts, holder)
    relay = Relay(database, settings, sender)
    scheduling = Loop("scheduler", scheduler.turn, settings.poll_s, at_end=scheduler.stop)
    relaying = Loop("relay", relay.turn, settings.poll_s)
    cleaning = Loop("cleaner", Cleaner(database, settings, holder).turn, CLEANER_PAUSE_S)

    def wake(changed: Changes) -> None:
        if changed.plan:
            scheduling.wake()
        if changed.send:
            relaying.wake()
        if changed.swept:
            cleaning.wake()

    database.listen(wake)
    return scheduling, relaying, cleaning, *pool_loops(settings, database, holder, keys.public_pem)
