"""Signing a browser in and out: by password, key, one-time link or an OIDC provider."""

from typing import Any
from urllib.parse import quote, unquote

import httpx
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import raw_client, require_same_origin
from dashboard.parameters import form_texts
from dashboard.rendering import page
from powermean.calls import ApiError, check
from powermean.contracts.api import ErrorBody
from powermean.contracts.names import session_cookie
from powermean.contracts.signin import SessionView

OIDC_PATH = "/login/oidc"
OIDC_S = 600  # for a person to sign in at the provider
LINK = "link"  # in place of the page to return to, which starts with a slash


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


async def _open_session(request: Request, body: dict[str, Any]) -> httpx.Response:
    async with raw_client(request) as client:
        answer = await client.post("/v1/sessions", json=body)
    return check(answer)


async def _asked(
    request: Request, back: str, status: int = 200, error: ErrorBody | None = None, email: str = ""
) -> Response:
    """The page that asks who it is, with the ways that there are."""
    async with api.client(request) as client:
        ways = await client.sign_in_ways()
    return page(request, "login.html", status=status, back=back, error=error, ways=ways, email=email)


async def login_page(request: Request) -> Response:
    """GET /login."""
    return await _asked(request, safe_return(request.query_params.get("next")))


async def sign_in(request: Request) -> Response:
    """POST /login with e-mail address and password, or a key."""
    require_same_origin(request)
    form = await request.form()
    back = safe_return(form.get("next"))
    given = {name: str(form.get(name) or "").strip() for name in ("key", "email")}
    password = str(form.get("password") or "")
    if given["email"] and password:
        body = {"email": given["email"], "password": password}
    elif given["key"]:
        body = {"key": given["key"]}
    else:
        error = ErrorBody(code="nothing_given", message="Fill in e-mail address and password, or a key.")
        return await _asked(request, back, 422, error, given["email"])
    try:
        answer = await _open_session(request, body)
    except ApiError as refused:
        return await _asked(request, back, refused.status, refused.body, given["email"])
    return _with_cookies(RedirectResponse(back, status_code=303), answer)


async def code_page(request: Request) -> Response:
    """GET /login/{code}: sends the code by POST, so that a link preview does not use it up."""
    return page(request, "login_code.html", code=request.path_params["code"])


async def sign_in_with_code(request: Request) -> Response:
    """POST /login/{code}. An invitation leads to where one sets a password."""
    require_same_origin(request)
    try:
        answer = await _open_session(request, {"code": request.path_params["code"]})
    except ApiError as refused:
        return await _asked(request, "/", refused.status, refused.body)
    opened = SessionView.model_validate_json(answer.content)
    back = "/account#password" if opened.method == "invitation" else "/"
    return _with_cookies(RedirectResponse(back, status_code=303), answer)


async def to_provider(request: Request) -> Response:
    """GET /login/oidc: off to the provider. What the browser has to keep goes into a cookie of its own.

    With ?link=yes whoever is signed in by an invitation wants to sign in there from now on.
    """
    linking = request.query_params.get("link") == "yes"
    back = LINK if linking else safe_return(request.query_params.get("next"))
    try:
        async with api.client(request) as client:
            started = await client.start_oidc()
    except ApiError as refused:
        return await _asked(request, back, refused.status, refused.body)
    answer = RedirectResponse(started.url, status_code=303)
    # Lax: the browser has to send it when the provider, another site, sends it back
    answer.set_cookie(
        _oidc_cookie(request),
        f"{started.secret}.{quote(back, safe='')}",
        max_age=OIDC_S,
        **_for_oidc(request),
    )
    return answer


async def from_provider(request: Request) -> Response:
    """GET /login/oidc/callback: the provider's answer becomes a session.

    The session's cookie is not sent along a way that began at another site, so the page goes on by itself.
    """
    secret, _, kept = request.cookies.get(_oidc_cookie(request), "").partition(".")
    back = safe_return(unquote(kept))
    given = request.query_params
    if "code" not in given or "state" not in given or not secret:
        error = ErrorBody(
            code="not_signed_in",
            message="The provider has not signed you in."
            if "error" in given
            else "This sign-in was started in another browser, or too long ago.",
            remedy="Start again.",
        )
        return await _asked(request, back, 401, error)
    if kept == LINK:
        return page(request, "link_provider.html", code=given["code"], state=given["state"])
    proof = {"code": given["code"], "state": given["state"], "secret": secret}
    try:
        answer = await _open_session(request, {"oidc": proof})
    except ApiError as refused:
        return await _asked(request, back, refused.status, refused.body)
    signed_in = _with_cookies(page(request, "signed_in.html", back=back), answer)
    signed_in.delete_cookie(_oidc_cookie(request), **_for_oidc(request))
    return signed_in


async def link_provider(request: Request) -> Response:
    """POST /login/oidc/link: the person confirms that the provider signs them in from now on."""
    require_same_origin(request)
    secret = request.cookies.get(_oidc_cookie(request), "").partition(".")[0]
    given = await form_texts(request, "code", "state")
    async with raw_client(request) as client:
        answer = check(await client.put("/v1/me/provider", json=given | {"secret": secret}))
    linked = _with_cookies(RedirectResponse("/account", status_code=303), answer)
    linked.delete_cookie(_oidc_cookie(request), **_for_oidc(request))
    return linked


def _oidc_cookie(request: Request) -> str:
    return f"{session_cookie(request.headers.get('host', ''))}_oidc"


def _for_oidc(request: Request) -> dict[str, Any]:
    root = request.scope.get("state", {}).get("root", "")
    return {
        "path": root + OIDC_PATH,
        "secure": request.url.scheme == "https",
        "httponly": True,
        "samesite": "lax",
    }


async def sign_out(request: Request) -> Response:
    """POST /logout: also ends the session on the server."""
    require_same_origin(request)
    async with raw_client(request) as client:
        answer = await client.delete("/v1/sessions")
    if answer.status_code != 401:  # the session has already ended: signed out
        check(answer)
    return _with_cookies(RedirectResponse("/login", status_code=303), answer)
