"""Failures that the API reports: each kind has its status, and all have the same shape."""

from collections.abc import Sequence

from powermean.contracts.api import ErrorBody, FieldError
from powermean.errors import PowermeanError


class ServiceError(PowermeanError):
    """A failure that is reported to the caller with `status` and `body`."""

    status = 500

    def __init__(self, message: str, *, remedy: str | None = None, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(message, remedy=remedy)
        self.fields = tuple(fields)

    @property
    def body(self) -> ErrorBody:
        """The body of the answer."""
        return ErrorBody(code=self.code, message=self.message, remedy=self.remedy, fields=self.fields)


class InvalidInputError(ServiceError):
    """The request can be read, but asks for something impossible (`fields` says what)."""

    status = 422
    code = "invalid"

    @classmethod
    def at(cls, path: str, message: str, remedy: str | None = None) -> "InvalidInputError":
        """One field is at fault."""
        return cls(
            f"{path}: {message}",
            remedy=remedy,
            fields=[FieldError(path=path, message=message, remedy=remedy)],
        )


class UnreadableSpecError(InvalidInputError):
    """The text of a spec can't be read: it is not the YAML that specs are written in."""

    code = "unreadable_spec"


class UnauthenticatedError(ServiceError):
    """No credential, or an invalid or expired one."""

    status = 401
    code = "unauthenticated"


class ForbiddenError(ServiceError):
    """The caller is known but not allowed to do this."""

    status = 403
    code = "forbidden"


class NotFoundError(ServiceError):
    """There is no such thing."""

    status = 404
    code = "not_found"


class ConflictError(ServiceError):
    """The current state does not allow it."""

    status = 409
    code = "conflict"


class QuotaExceededError(ConflictError):
    """The project stores as much as it may."""

    code = "quota_exceeded"


class FencedError(ConflictError):
    """The attempt is not the job's current one, or its lease has lapsed: it must stop and write no more."""

    code = "fenced"


class NotFirstNodeError(ForbiddenError):
    """The attempt's first node alone tells of steps, checkpoints and results."""

    code = "not_first_node"

    def __init__(self, attempt_id: str, node_rank: int) -> None:
        super().__init__(
            f"node {node_rank} of attempt {attempt_id} may not report this: only its first node does",
            remedy="Send heartbeats, the log, and the end of its processes from here.",
        )


class TooManyRequestsError(ServiceError):
    """The caller asks too often; `retry_after_s` says when to try again."""

    status = 429
    code = "too_many_requests"

    def __init__(self, retry_after_s: int, message: str = "too many tries") -> None:
        super().__init__(message, remedy=f"Try again in {retry_after_s} s.")
        self.retry_after_s = retry_after_s


class UnavailableError(ServiceError):
    """Something that the service needs is unavailable; the same request may succeed later."""

    status = 503
    code = "unavailable"
