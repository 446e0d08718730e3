"""What a call of the REST API is, how its answer is read, and the errors instead of one.

The calls themselves are in rest.py and its siblings. An answer other than success is an ApiError.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from powermean.contracts.api import ErrorBody, ErrorResponse, Job
from powermean.contracts.job import JobSpec
from powermean.errors import PowermeanError

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
Params = tuple[tuple[str, str], ...]
IDEMPOTENCY_KEY = "Idempotency-Key"


class ServerUnreachableError(PowermeanError):
    """No answer from the server: not running, not reachable, or too slow."""

    code = "server_unreachable"
    retryable = True

    def __init__(self, url: str, cause: Exception | str) -> None:
        super().__init__(f"no answer from {url}: {cause or type(cause).__name__}")
        self.url = url


class ApiError(PowermeanError):
    """The server refused a request. `str` says what, which fields, and the remedy."""

    def __init__(self, status: int, body: ErrorBody) -> None:
        retryable = status >= 500 or status in (408, 425, 429)
        super().__init__(body.message, code=body.code, remedy=body.remedy, retryable=retryable)
        self.status = status
        self.body = body

    def __str__(self) -> str:
        return _readable(self.body)


class FencedError(ApiError):
    """The attempt is not the job's current one any more: stop at once, write nothing."""


def spec_of(job: Job, *needed: str) -> JobSpec:
    """The job's spec, in which the fields and sections `needed` have the values that were chosen.

    Raises ApiError: the server's version can't read it, or refuses one of these, a part or the whole of it.
    """
    wrong = [one for one in job.spec_refused if job.spec is None or _within(one.path, needed)]
    if job.spec is not None and not wrong:
        return job.spec
    message = f"the server can't read the spec of {job.id}: {wrong[0].path}: {wrong[0].message}"
    raise ApiError(409, ErrorBody(code="spec_refused", message=message, remedy=wrong[0].remedy))


def _within(path: str, needed: Iterable[str]) -> bool:
    return any(f"{path}.".startswith(f"{one}.") or one.startswith(f"{path}.") for one in needed)


def beyond_fields(body: ErrorBody) -> str:
    """What the message says beyond the fields: all, nothing, or `(and N more)` if not all are listed."""
    if not body.fields:
        return body.message
    first = body.fields[0]
    rest = body.message.removeprefix(f"{first.path}: {first.message}").strip()
    return "" if rest == f"(and {len(body.fields) - 1} more)" else rest


def _readable(body: ErrorBody) -> str:
    """Each thing once: an answer's message and remedy may repeat those of its first field."""
    rest = beyond_fields(body)
    lines = [f"{one.path}: {one.message}" + (f" ({one.remedy})" if one.remedy else "") for one in body.fields]
    if rest.startswith("(and "):
        lines.append(rest)
    elif rest:
        lines = [rest, *(f"  {line}" for line in lines)]
    if body.remedy and not any(one.remedy == body.remedy for one in body.fields):
        lines.append(body.remedy)
    return "\n".join(lines)


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request and the reading of its answer."""

    method: str
    path: str
    parse: Callable[[httpx.Response], T]
    params: Params = ()
    json: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does the same as once. A DELETE would answer that there is nothing."""
        return self.method in ("GET", "PUT") or IDEMPOTENCY_KEY in self.headers

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of `httpx.Client.build_request`."""
        given: dict[str, Any] = {"method": self.method, "url": self.path, "headers": dict(self.headers)}
        if self.params:
            given["params"] = self.params
        if self.json is not None:
            given["content"] = json.dumps(self.json).encode()
            given["headers"]["Content-Type"] = "application/json"
        return given


def check(response: httpx.Response) -> httpx.Response:
    """Raise ApiError for anything but success; the body must have been read."""
    if response.is_success:
        return response
    try:
        body = ErrorResponse.model_validate_json(response.content).error
    except ValidationError:
        body = ErrorBody(
            code="unexpected_answer",
            message=f"{response.request.url} answered {response.status_code} {response.reason_phrase}, "
            "not in this service's form",
            remedy="Is the address that of a powermean server?",
        )
    kind = FencedError if response.status_code == 409 and body.code == "fenced" else ApiError
    raise kind(response.status_code, body)


def reads(model: type[M]) -> Callable[[httpx.Response], M]:
    """A reader of one contract."""

    def read(response: httpx.Response) -> M:
        return model.model_validate_json(check(response).content)

    return read


def nothing(response: httpx.Response) -> None:
    """The reader of an answer without a body."""
    check(response)


def params(**given: str | int | None) -> Params:
    """Query parameters; those that are None are left out."""
    return tuple((name, str(value)) for name, value in given.items() if value is not None)


def flags(**given: bool) -> Params:
    return tuple((name, "true") for name, value in given.items() if value)
