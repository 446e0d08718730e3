"""Turns every failure into contracts.api.ErrorResponse: which field, what is wrong, and the remedy."""

import logging
from collections.abc import Mapping
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
from powermean.field_errors import field_errors
from server.db.session import (
    LOCKED_SQLSTATE,
    STOPPED_SQLSTATE,
    DatabaseBusyError,
    DatabaseFullError,
    DatabaseMovedError,
)
from server.errors import ServiceError, TooManyRequestsError

log = logging.getLogger(__name__)

_CODES = {
    400: "bad_request",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "unsupported_encoding",
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
    if isinstance(error, TooManyRequestsError):
        headers["Retry-After"] = str(error.retry_after_s)
    return error_response(error.status, error.body, headers)


def _invalid_request(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    fields = tuple(_field_errors(error, request))
    first = fields[0]
    message = f"{first.path}: {first.message}" if first.path else first.message
    if (more := len(fields) - 1 + max(0, len(errors) - _MOST_FIELDS)) > 0:
        message += f" (and {more} more)"
    return error_response(422, ErrorBody(code="invalid", message=message, remedy=first.remedy, fields=fields))


def _field_errors(error: RequestValidationError, request: Request) -> list[FieldError]:
    """The first wrong fields, with the paths that the caller wrote."""
    errors: list[Mapping[str, Any]] = list(error.errors()[:_MOST_FIELDS])
    in_body = [_below_place(one) for one in errors if one["loc"][0] == "body"]
    elsewhere = [_below_place(one) for one in errors if one["loc"][0] != "body"]
    route_body = getattr(request.scope.get("route"), "body_field", None)
    contract = route_body.field_info.annotation if route_body else None
    wrong = [*field_errors(elsewhere, None), *field_errors(in_body, error.body, contract)]
    return [one if one.path else one.model_copy(update={"path": "body"}) for one in wrong]


def _below_place(error: Mapping[str, Any]) -> Mapping[str, Any]:
    """The error, located within the body or among the parameters."""
    place, *rest = error["loc"]
    return {**error, "loc": tuple(rest) if rest and place in _PLACES else error["loc"]}


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
    sqlstate = getattr(error.orig, "sqlstate", None) if isinstance(error, OperationalError) else None
    if sqlstate == LOCKED_SQLSTATE:
        body = ErrorBody(
            code="lock_timeout",
            message="another request held what this one needs, and did not end in time",
            remedy="Try again in a moment. If that does not help, look for a long transaction in Postgres.",
        )
        return error_response(503, body, {"Retry-After": "2"})
    if sqlstate == STOPPED_SQLSTATE:
        body = ErrorBody(
            code="statement_timeout",
            message="the database worked too long at one statement of this request, and stopped it",
            remedy="Ask for less at once. An administrator can raise POWERMEAN_STATEMENT_S.",
        )
        return error_response(503, body)
    body = ErrorBody(
        code="unavailable",
        message="the database is not available right now",
        remedy="Try again in a moment; the server's log says more.",
    )
    return error_response(503, body, {"Retry-After": "2"})
