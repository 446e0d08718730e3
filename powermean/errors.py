"""The family of errors: every failure that people or programs can act on is a PowermeanError.

Between processes an error travels as a contract: ErrorBody in an API's answer, JobError as the reason a job
ended. Exceptions that only steer one process (a signal, an order to stop) are no failures and not part of the
family. docs/architecture.md shows the tree.
"""

from powermean.contracts.attempts import JobError


class PowermeanError(Exception):
    """A failure with a name; `str` is for people.

    A class of errors sets these as class attributes, or each error sets its own:

    code: stable name for programs; `internal` if no program outside the process ever sees it.
    path: the field at fault, in a job's spec or a request.
    remedy: what to do about it, for people.
    retryable: whether a retry may succeed.
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
        """The error as a contract, for the end of a job."""
        return JobError(code=self.code, message=self.message, path=self.path, remedy=self.remedy)
