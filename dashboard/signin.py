"""Signing a browser in and out: a key, or a code printed by the command line, becomes a cookie."""

import httpx
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard.api import raw_client, require_same_origin
from dashboard.rendering import page
from powermean.contracts.api import ErrorBody
from powermean.rest import ApiError, check


def safe_return(address: object) -> str:
    """A path on this site to return to; anything else becomes the front page."""
    if not isinstance(address, str) or not address.startswith("/") or address.startswith(("//", "/\\")):
        return "/"
    return "/" if any(ord(character) < 33 for character in address) else address


def _with_cookies(answer: Response, api_answer: httpx.Response) -> Response:
    """Pass the API's cookies on to the browser unchanged."""
    for value in api_answer.headers.get_list("set-cookie"):
        answer.headers.append("set-cookie", value)
    return answer


async def _open_session(request: Request, body: dict[str, str], back: str) -> Response:
    require_same_origin(request)
    async with raw_client(request) as api:
        answer = await api.post("/v1/sessions", json=body)
    check(answer)
    return _with_cookies(RedirectResponse(back, status_code=303), answer)


async def login_page(request: Request) -> Response:
    """GET /login: asks for a key."""
    return page(request, "login.html", back=safe_return(request.query_params.get("next")), error=None)


async def sign_in(request: Request) -> Response:
    """POST /login with a key."""
    form = await request.form()
    back = safe_return(form.get("next"))
    key = form.get("key")
    if not isinstance(key, str) or not key.strip():
        error = ErrorBody(code="no_key", message="Paste a key first.", remedy="It starts with pm_.")
        return page(request, "login.html", status=422, back=back, error=error)
    try:
        return await _open_session(request, {"key": key.strip()}, back)
    except ApiError as refused:
        return page(request, "login.html", status=refused.status, back=back, error=refused.body)


async def code_page(request: Request) -> Response:
    """GET /login/{code}: sends the code by POST, so that a link preview does not use it up."""
    return page(request, "login_code.html", code=request.path_params["code"])


async def sign_in_with_code(request: Request) -> Response:
    """POST /login/{code}."""
    try:
        return await _open_session(request, {"code": request.path_params["code"]}, "/")
    except ApiError as refused:
        return page(request, "login.html", status=refused.status, back="/", error=refused.body)


async def sign_out(request: Request) -> Response:
    """POST /logout: also ends the session on the server."""
    require_same_origin(request)
    async with raw_client(request) as api:
        answer = await api.delete("/v1/sessions")
    if answer.status_code != 401:  # the session has already ended: signed out
        check(answer)
    return _with_cookies(RedirectResponse("/login", status_code=303), answer)
