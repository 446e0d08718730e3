"""The family of errors: whatever goes wrong in a way that people or programs can act on is a PowermeanError.

Between processes an error travels as a contract: ErrorBody in an answer of an API, JobError as a job's end.
What only steers one process (a signal, an order to stop) is no failure and no part of the family.
docs/architecture.md draws the tree.
"""

from powermean.contracts.attempts import JobError


class PowermeanError(Exception):
    """A failure with a name; `str` is for people.

    A kind of error fixes these as class attributes, or leaves them to each error:

    code: stable name for programs; `internal` where no program outside the process ever sees it.
    path: the field at fault, of a job's spec or a request.
    remedy: what to do about it, for people.
    retryable: the same may well succeed later.
    """

    code: str = "internal"
    path: str | None = None
    remedy: str | None = None
    retryable: bool = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        path: str | None = None,
        remedy: str | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        if code is not None:
            self.code = code
        if path is not None:
            self.path = path
        if remedy is not None:
            self.remedy = remedy
        if retryable is not None:
            self.retryable = retryable

    @property
    def error(self) -> JobError:
        """As a job's end tells it."""
        return JobError(code=self.code, message=self.message, path=self.path, remedy=self.remedy)
