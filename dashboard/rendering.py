"""Renders pages from templates. Everything is escaped except what the templates themselves contain."""

import re
from functools import partial
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from dashboard import assets, formatting
from powermean.contracts.names import session_cookie
from powermean.remedies import spoken
from powermean.sizes import exact_size, size

FILTERS = (
    "browser_name",
    "duration",
    "elapsed",
    "moment",
    "number",
    "percent",
    "signed",
    "state_class",
    "state_word",
    "visible",
)
_TEMPLATES = Path(__file__).parent / "templates"


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {name: getattr(formatting, name) for name in FILTERS}
    environment.filters["size"] = size
    environment.filters["exact_size"] = exact_size
    environment.filters["spoken"] = partial(spoken, reader="page")
    environment.globals["static"] = assets.address
    environment.globals["vendor"] = assets.vendor
    return environment


_ENVIRONMENT = _environment()
# An address in a template. Values are escaped, so that no text of others has a quote here.
_ADDRESS = re.compile(r'\b((?:href|src|action|(?:hx|data)-[a-z-]+)=")/')


def page(request: Request, template: str, status: int = 200, **context: Any) -> HTMLResponse:
    """The answer with a rendered template. `signed_in` says whether to offer signing out, `viewer` who looks
    at it if that is known.
    """
    root = request.scope.get("state", {}).get("root", "")
    html = _ENVIRONMENT.get_template(template).render(
        path=request.url.path,
        status=status,
        root=root,
        signed_in=session_cookie(request.headers.get("host", "")) in request.cookies,
        viewer=getattr(request.state, "viewer", None),
        **context,
    )
    if root:  # the service is below a path of a proxy
        html = _ADDRESS.sub(lambda found: f"{found[1]}{root}/", html)
    return HTMLResponse(html, status_code=status)
