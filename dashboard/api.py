"""REST calls on behalf of the caller: the dashboard can show nothing that its caller may not see."""

from urllib.parse import quote

import httpx
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp

from powermean.async_client import AsyncClient
from powermean.contracts.names import session_cookie

# How long a page waits for the API: longer than its slowest query, shorter than people's patience.
TIMEOUT_S = 30.0


def _origin(request: Request) -> str:
    return str(request.base_url).rstrip("/")


def _session(request: Request) -> dict[str, str]:
    """The cookie of this service, without those that other programs on the host have set."""
    name = session_cookie(request.headers.get("host", ""))
    value = request.cookies.get(name, "")
    return {name: value} if value and value.isascii() else {}


def _transport(request: Request) -> httpx.ASGITransport:
    api: ASGIApp = request.app.state.api
    client = (request.client.host, request.client.port) if request.client else ("127.0.0.1", 0)
    return httpx.ASGITransport(app=api, raise_app_exceptions=False, client=client)


def client(request: Request) -> AsyncClient:
    """A client with the caller's session and host name; use it as a context manager."""
    return AsyncClient(_origin(request), cookies=_session(request), transport=_transport(request))


def raw_client(request: Request) -> httpx.AsyncClient:
    """Plain HTTP to the API, for calls whose answer sets a cookie."""
    return httpx.AsyncClient(
        base_url=_origin(request),
        headers={"Origin": _origin(request), "User-Agent": request.headers.get("User-Agent", "")},
        cookies=_session(request),
        transport=_transport(request),
        timeout=TIMEOUT_S,
    )


def require_same_origin(request: Request) -> None:
    """Refuse a form sent by another site. The API only sees our own origin, so it can't check this."""
    origin = request.headers.get("Origin", "").lower()
    public = request.scope.get("state", {}).get("public_origin")
    if origin.partition("://")[2] != request.headers.get("Host", "").lower() and origin != public:
        raise HTTPException(403, "This form was sent from another site. Open the page here and try again.")


def is_fragment(request: Request) -> bool:
    """Whether htmx requests part of a page."""
    return request.headers.get("HX-Request") == "true"


def login_address(request: Request) -> str:
    """Address of the sign-in page that leads back to this page."""
    back = request.url.path if request.method == "GET" else "/"
    if is_fragment(request):
        root = request.scope.get("state", {}).get("root", "")
        back = httpx.URL(request.headers.get("HX-Current-URL", "/")).path.removeprefix(root)
    return "/login" if back == "/" else f"/login?next={quote(back)}"
