"""How answers report old names in their request (powermean/deprecations.py).

Old fields are listed in the body under `deprecations`. Old paths get the header of RFC 9745, which says that
the resource itself is deprecated, so it would be wrong for a field.
"""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request, Response

from powermean.deprecations import PATHS, SINCE

_NEW_PATH = {one.old: one.new for one in PATHS}


async def _given_body(request: Request) -> object:
    """The body as it was sent, since the parsed one has only new names. None if it is not JSON."""
    try:
        return await request.json()
    except (ValueError, RecursionError):
        return None


def _say_where(request: Request, response: Response) -> None:
    """Headers of RFC 9745 and RFC 5829: since when the path is deprecated, and the new path."""
    new = _NEW_PATH[request.scope["route"].path]
    place = new.format(**{name: quote(value, safe="") for name, value in request.path_params.items()})
    response.headers["Deprecation"] = f"@{SINCE.timestamp():.0f}"
    response.headers["Link"] = f'<{place}>; rel="successor-version"'


GivenBody = Annotated[object, Depends(_given_body)]
_HEADERS = {
    "Deprecation": {"description": "Since when it is deprecated (RFC 9745).", "schema": {"type": "string"}},
    "Link": {"description": "`successor-version`: the new path.", "schema": {"type": "string"}},
}
# For a route at an old path: @router.get(OLD, **DEPRECATED)
DEPRECATED: dict[str, Any] = {
    "deprecated": True,
    "dependencies": [Depends(_say_where)],
    "responses": {200: {"headers": _HEADERS}},
}
