"""Liveness, readiness and metrics of the server: /healthz, /readyz, /metrics.

Health checks need no key and reveal only the names of parts; everything else needs one, including /metrics.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from powermean.contracts.api import Readiness
from powermean.contracts.base import Contract
from server.errors import UnavailableError
from server.identity.callers import Caller
from server.readiness import VITAL
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import RequestObservatory

router = APIRouter(tags=["operations"], route_class=KnownCallerRoute)


class Health(Contract):
    """The process answers."""

    status: Literal["ok"] = "ok"


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> Health:
    """Needs no key. Does not check what the server depends on; restart the process if this fails."""
    return Health()


@router.get("/readyz", summary="Is the server ready?")
async def readyz(observatory: RequestObservatory) -> Readiness:
    """Needs no key. 503 if this server can't answer requests: its database fails, or it is about to stop
    and serves until proxies have noticed. `degraded` names parts whose failure no other server mends: redis,
    artefacts, scheduler."""
    wrong = await observatory.parts.wrong()
    if vital := [error.path for error in wrong if error.path in VITAL]:
        raise UnavailableError(
            f"not ready: {', '.join(vital)}", remedy="The server's log says more.", fields=wrong
        )
    return Readiness(status="degraded" if wrong else "ready", wrong=wrong)


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
async def prometheus(
    caller: Annotated[Caller, May("operations.read")], observatory: RequestObservatory
) -> Response:
    """Needs a key; configure Prometheus to send it as a bearer token."""
    await observatory.parts.wrong()  # nobody may have asked lately
    numbers = await run_in_threadpool(generate_latest, observatory.registry)
    return Response(numbers, media_type=CONTENT_TYPE_LATEST)
