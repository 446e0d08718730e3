"""Liveness, readiness and metrics of the server: /healthz, /readyz, /metrics.

Health checks need no key and reveal only the names of parts; everything else needs one, including /metrics.
"""

from typing import Annotated, Literal

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from powermean.contracts.base import Contract
from server.errors import UnavailableError
from server.identity.callers import Caller
from server.routes.access import KnownCallerRoute, May
from server.routes.dependencies import RequestObservatory

router = APIRouter(tags=["operations"], route_class=KnownCallerRoute)


class Health(Contract):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(Contract):
    """Everything the server needs is available."""

    status: Literal["ready"] = "ready"


@router.get("/healthz", summary="Does the process answer?")
async def healthz() -> Health:
    """Needs no key. Does not check what the server depends on; restart the process if this fails."""
    return Health()


@router.get("/readyz", summary="Is the server ready?")
async def readyz(observatory: RequestObservatory) -> Readiness:
    """Needs no key. 503 names the parts that are wrong: database, redis, artefacts, scheduler; or server,
    which is about to stop and serves until proxies have noticed."""
    if wrong := await observatory.wrong():
        raise UnavailableError(
            f"not ready: {', '.join(error.path for error in wrong)}",
            remedy="The server's log says more.",
            fields=wrong,
        )
    return Readiness()


@router.get(
    "/metrics",
    summary="Numbers for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus text.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
def prometheus(
    caller: Annotated[Caller, May("operations.read")], observatory: RequestObservatory
) -> Response:
    """Needs a key; configure Prometheus to send it as a bearer token."""
    return Response(generate_latest(observatory.registry), media_type=CONTENT_TYPE_LATEST)
