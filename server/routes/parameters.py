"""Query parameters that a route doesn't have are refused: a misspelt filter would show what nobody wants."""

from collections.abc import Iterable

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.dependencies.utils import get_flat_dependant

from powermean.contracts.api import FieldError
from powermean.field_errors import did_you_mean
from server.errors import InvalidInputError
from server.routes.json_bodies import Handle

MOST_SAID = 20
LONGEST_NAME = 60


def known_parameters(handle: Handle, dependant: Dependant) -> Handle:
    """The handler, for requests with no other query parameters than the route's own."""
    known = {field.alias for field in get_flat_dependant(dependant).query_params}

    async def handle_known(request: Request) -> Response:
        check_parameters(request.query_params.keys(), known)
        return await handle(request)

    return handle_known


def check_parameters(given: Iterable[str], known: set[str]) -> None:
    """Raises InvalidInputError naming what is not known, and what is."""
    unknown = [name[:LONGEST_NAME] for name in dict.fromkeys(given) if name not in known][:MOST_SAID]
    if not unknown:
        return
    remedy = f"Parameters here: {', '.join(sorted(known))}." if known else "This address takes none."
    fields = [
        FieldError(path=name, message="there is no such parameter" + did_you_mean(name, known), remedy=remedy)
        for name in unknown
    ]
    raise InvalidInputError(f"{fields[0].path}: {fields[0].message}", remedy=remedy, fields=fields)
