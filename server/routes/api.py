"""All routes of the API, in the order in which openapi.json shows them."""

from functools import cache

from fastapi import APIRouter
from starlette.routing import BaseRoute

from powermean.contracts.api import ErrorResponse
from server.routes import (
    artefacts,
    attempts,
    audit,
    device,
    engines,
    events,
    identity,
    jobs,
    metrics,
    nodes,
    operations,
    people,
    pools,
    priorities,
    projects,
    replays,
    secrets,
    servers,
    sharing,
    signin,
    storage,
)

# Any request may be malformed, unknown, in conflict or unavailable; errors always have the same shape.
_ANSWERS: dict[int | str, dict[str, object]] = {
    400: {"model": ErrorResponse, "description": "The request can't be read, or names another host."},
    401: {"model": ErrorResponse, "description": "No valid credential."},
    403: {"model": ErrorResponse, "description": "Not allowed."},
    404: {"model": ErrorResponse, "description": "Not found."},
    408: {"model": ErrorResponse, "description": "The body did not come."},
    409: {
        "model": ErrorResponse,
        "description": "Not possible in this state; `fenced`: not the current attempt.",
    },
    413: {"model": ErrorResponse, "description": "The body is too large."},
    415: {"model": ErrorResponse, "description": "The body is compressed (Content-Encoding)."},
    422: {"model": ErrorResponse, "description": "A field is wrong; `fields` says which."},
    429: {
        "model": ErrorResponse,
        "description": "Too many requests.",
        "headers": {
            "Retry-After": {
                "schema": {"type": "integer"},
                "description": "Seconds to wait.",
            }
        },
    },
    500: {"model": ErrorResponse, "description": "An unexpected error."},
    503: {"model": ErrorResponse, "description": "Something that the service needs is unavailable."},
}


@cache
def api_routes() -> list[BaseRoute]:
    """Built once per process: they are independent of the app, and building them is slow for tests."""
    api = APIRouter(responses=_ANSWERS, redirect_slashes=False)
    for part in (
        identity,
        signin,
        device,
        people,
        projects,
        secrets,
        jobs,
        attempts,
        nodes,
        pools,
        engines,
        sharing,
        priorities,
        metrics,
        events,
        replays,
        artefacts,
        storage,
        audit,
        operations,
        servers,
    ):
        api.include_router(part.router)
    return api.routes
