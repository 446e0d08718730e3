"""What an answer says of the old names in its request (powermean/deprecations.py).

Old fields are named in the body, in `deprecations`. Old paths get the header of RFC 9745: that one says that
the resource itself is deprecated, so it would be wrong for a field.
"""

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Depends, Request, Response

from powermean.deprecations import PATHS, SINCE

_NEW_PATH = {one.old: one.new for one in PATHS}


async def _given_body(request: Request) -> object:
    """The body as it was sent: what was read of it has the new names alone. None where it is no JSON."""
    try:
        return await request.json()
    except (ValueError, RecursionError):
        return None


def _say_where(request: Request, response: Response) -> None:
    """Headers of RFC 9745 and RFC 5829: since when the path is the old one, and which is the new one."""
    new = _NEW_PATH[request.scope["route"].path]
    place = new.format(**{name: quote(value, safe="") for name, value in request.path_params.items()})
    response.headers["Deprecation"] = f"@{SINCE.timestamp():.0f}"
    response.headers["Link"] = f'<{place}>; rel="successor-version"'


GivenBody = Annotated[object, Depends(_given_body)]
_HEADERS = {
    "Deprecation": {"description": "Since when: RFC 9745.", "schema": {"type": "string"}},
    "Link": {"description": "`successor-version`: the new path.", "schema": {"type": "string"}},
}
# Of a route at an old path: @router.get(OLD, **DEPRECATED)
DEPRECATED: dict[str, Any] = {
    "deprecated": True,
    "dependencies": [Depends(_say_where)],
    "responses": {200: {"headers": _HEADERS}},
}
