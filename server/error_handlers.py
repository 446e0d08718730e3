"""Turns every failure into contracts.api.ErrorResponse: which field, what is wrong, and the remedy."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from powermean.artefacts import (
    ArtefactError,
    ArtefactMissingError,
    ArtefactStoreFullError,
    ArtefactStoreUnavailableError,
)
from powermean.contracts.api import ErrorBody, ErrorResponse, FieldError
from server.db.session import DatabaseBusyError, DatabaseFullError, DatabaseMovedError
from server.errors import ServiceError

log = logging.getLogger(__name__)

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
}
_REMEDIES = {
    "extra_forbidden": "Remove it, or check its spelling.",
    "missing": "Add it.",
    "json_invalid": "Send a JSON document with Content-Type: application/json.",
    "union_tag_not_found": "Add the field that selects the kind.",
}
_MOST_FIELDS = 20  # in one answer
_PLACES = ("body", "query", "path", "header", "cookie")


def error_response(status: int, body: ErrorBody, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """An error answer."""
    content = ErrorResponse(error=body).model_dump(mode="json")
    return JSONResponse(content, status_code=status, headers=dict(headers or {}))


def install_error_handlers(app: FastAPI) -> None:
    """Give every kind of failure the same shape; unknown ones are unexpected errors (500)."""
    app.add_exception_handler(ServiceError, _service_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(ArtefactError, _artefact_error)
    app.add_exception_handler(DataError, _unstorable)
    app.add_exception_handler(DatabaseFullError, _database_full)
    for kind in (OperationalError, PoolTimeout, DatabaseBusyError, DatabaseMovedError):
        app.add_exception_handler(kind, _database_error)


def _service_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ServiceError)
    headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
    return error_response(error.status, error.body, headers)


def _invalid_request(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    fields = tuple(field_error(one, error.body) for one in errors[:_MOST_FIELDS])
    first = fields[0]
    message = f"{first.path}: {first.message}" if first.path else first.message
    if len(errors) > 1:
        message += f" (and {len(errors) - 1} more)"
    return error_response(422, ErrorBody(code="invalid", message=message, remedy=first.remedy, fields=fields))


def field_error(error: Mapping[str, Any], body: Any) -> FieldError:
    """pydantic's error with the path as the caller wrote it, without union tags."""
    place, *rest = error["loc"]
    parts: Sequence[str | int] = rest if place in _PLACES else error["loc"]
    if place == "body":
        parts = _without_tags(parts, body, missing=error["type"] == "missing")
    path = ".".join(str(part) for part in parts) or str(place)
    message = str(error["msg"]).removeprefix("Value error, ")
    return FieldError(path=path, message=message, remedy=_REMEDIES.get(error["type"]))


def _without_tags(parts: Sequence[Any], body: Any, missing: bool) -> list[str | int]:
    """Follow the path through the body; a step that is not there is a union's tag or the missing field."""
    kept: list[str | int] = []
    here = body
    for number, part in enumerate(parts):
        last = number == len(parts) - 1
        if (isinstance(here, dict) and part in here) or (isinstance(here, list) and isinstance(part, int)):
            here = here[part]
        elif isinstance(here, dict | list) and not (last and missing):
            continue
        kept.append(part)
    return kept


def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, f"http_{error.status_code}")
    remedy = "openapi.json describes the API." if error.status_code in (404, 405) else None
    return error_response(
        error.status_code, ErrorBody(code=code, message=str(error.detail), remedy=remedy), error.headers
    )


def _artefact_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ArtefactError)
    if isinstance(error, ArtefactMissingError):
        status = 404
    elif isinstance(error, ArtefactStoreUnavailableError | ArtefactStoreFullError):
        status = 503
    else:
        status = 500
    if status >= 500:
        log.error("artefact store: %s", error)
    return error_response(status, ErrorBody(code=error.code, message=str(error), remedy=error.remedy))


def _unstorable(_request: Request, error: Exception) -> JSONResponse:
    """Values that the database refuses: NUL characters, integers beyond 64 bits."""
    log.warning("refused by the database: %s", error)
    body = ErrorBody(
        code="invalid",
        message="the request contains a value that can't be stored",
        remedy="Leave out NUL characters and numbers beyond 64 bits.",
    )
    return error_response(422, body)


def _database_full(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, DatabaseFullError)
    log.error("database: %s", error)
    body = ErrorBody(
        code=error.code,
        message="the disk of the service's database is full: this was not stored",
        remedy="Make room there, and try again.",
    )
    return error_response(503, body, {"Retry-After": "2"})


def _database_error(_request: Request, error: Exception) -> JSONResponse:
    log.error("database: %s", error)
    body = ErrorBody(
        code="unavailable",
        message="the database is not available right now",
        remedy="Try again in a moment; the server's log says more.",
    )
    return error_response(503, body, {"Retry-After": "2"})
