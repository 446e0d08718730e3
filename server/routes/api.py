"""All routes of the API, in the order in which openapi.json shows them."""

from functools import cache

from fastapi import APIRouter
from starlette.routing import BaseRoute

from powermean.contracts.api import ErrorResponse
from server.routes import (
    artefacts,
    attempts,
    engines,
    events,
    identity,
    jobs,
    metrics,
    nodes,
    operations,
    replays,
)

# Anything may be malformed, unknown, in conflict or unavailable; the shape is always the same.
_ANSWERS: dict[int | str, dict[str, object]] = {
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


@cache
def api_routes() -> list[BaseRoute]:
    """Built once per process: they belong to no app, and building them takes longer than many a test."""
    api = APIRouter(responses=_ANSWERS, redirect_slashes=False)
    for part in (
        identity,
        jobs,
        attempts,
        nodes,
        engines,
        metrics,
        events,
        replays,
        artefacts,
        operations,
    ):
        api.include_router(part.router)
    return api.routes
