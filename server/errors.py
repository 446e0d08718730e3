"""Failures that the API answers by name: each kind with its status, all in one shape."""

from collections.abc import Sequence

from powermean.contracts.api import ErrorBody, FieldError
from powermean.errors import PowermeanError


class ServiceError(PowermeanError):
    """A failure that the caller can understand: answered with `status` and `body`."""

    status = 500

    def __init__(self, message: str, *, remedy: str | None = None, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(message, remedy=remedy)
        self.fields = tuple(fields)

    @property
    def body(self) -> ErrorBody:
        """What the caller is told."""
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


class UnauthenticatedError(ServiceError):
    """No credential, or one that is not valid (any more)."""

    status = 401
    code = "unauthenticated"


class ForbiddenError(ServiceError):
    """Known, but not allowed to do this."""

    status = 403
    code = "forbidden"


class NotFoundError(ServiceError):
    """There is no such thing."""

    status = 404
    code = "not_found"


class ConflictError(ServiceError):
    """The state that the thing is in does not allow it."""

    status = 409
    code = "conflict"


class FencedError(ConflictError):
    """The attempt is not the job's current one, or its lease has lapsed: it must stop and write no more."""

    code = "fenced"


class UnavailableError(ServiceError):
    """Something that the service needs is not there right now; the same request may succeed later."""

    status = 503
    code = "unavailable"
