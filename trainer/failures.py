"""Failures that people can act on: what goes wrong in a node's processes, as the job's error."""

from powermean.contracts.attempts import JobError


class TrainingError(Exception):
    """Ends the attempt with a typed error; `retryable` says that a new attempt may well succeed."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        path: str | None = None,
        remedy: str | None = None,
        retryable: bool = False,
    ) -> None:
        super().__init__(message)
        self.error = JobError(code=code, message=message, path=path, remedy=remedy)
        self.retryable = retryable
