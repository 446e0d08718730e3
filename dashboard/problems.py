"""Errors of the API as pages show them: a head, and below it the fields that are wrong."""

from powermean.calls import beyond_fields
from powermean.contracts.api import ErrorBody


def said_once(error: ErrorBody) -> ErrorBody:
    """The error with a head that does not repeat what its fields say."""
    count, beyond = len(error.fields), beyond_fields(error)
    if not count or (beyond and not beyond.startswith("(and ")):
        return error.model_copy(update={"message": beyond})
    if beyond:
        head = f"Many fields are wrong; the first {count}:"
    else:
        head = "One field is wrong:" if count == 1 else f"{count} fields are wrong:"
    return error.model_copy(update={"message": head})
