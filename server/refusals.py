"""The error answers of routes, for the schema: every one of them is a contracts.api.ErrorResponse."""

from typing import Any

from powermean.contracts.api import ErrorResponse

MEANINGS = {
    400: "The request cannot be read.",
    401: "No credential, or one that is not valid.",
    403: "The credential does not allow this.",
    404: "There is no such thing.",
    409: "Not in the state that it is in; code `fenced`: the attempt must stop.",
    413: "The body is too large.",
    416: "The file has no such range.",
    422: "A field is wrong; `fields` says which and what would be right.",
    503: "Something that the service needs is not there right now.",
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The `responses` of a route that may answer these statuses, besides 400 and 422, which any may."""
    return {
        status: {"model": ErrorResponse, "description": MEANINGS[status]}
        for status in sorted({400, 422, *statuses})
    }
