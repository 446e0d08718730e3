"""The dashboard: web pages over the REST API."""

from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dashboard import (
    account,
    assets,
    cluster,
    group,
    job,
    jobs,
    logs,
    replays,
    signin,
    steps,
    submit,
    trajectory,
)
from dashboard.api import is_fragment, login_address
from dashboard.rendering import page
from powermean.contracts.api import ErrorBody, ErrorResponse
from powermean.rest import ApiError, ServerUnreachableError

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; object-src 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "same-origin",  # not no-referrer: forms would then send Origin: null
    "X-Content-Type-Options": "nosniff",
}


class SecurityHeaders:
    """Adds the headers to every answer of the dashboard; pages of signed-in people are not cached."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await self.app(scope, receive, send_with_headers)


async def _refused(request: Request, error: Exception) -> Response:
    """The API refused: go to the sign-in page, or show its error."""
    assert isinstance(error, ApiError)
    if error.status == 401:
        address = login_address(request)
        if is_fragment(request):
            return Response(status_code=401, headers={"HX-Redirect": address})
        return RedirectResponse(address, status_code=303)
    return page(request, "error.html", status=error.status, error=error.body)


async def _unanswered(request: Request, error: Exception) -> Response:
    body = ErrorBody(code="unreachable", message=str(error), remedy="Try again in a moment.")
    return page(request, "error.html", status=503, error=body)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    missing = error.status_code == 404
    body = ErrorBody(
        code="not_found" if missing else "refused",
        message=f"There is no page at {request.url.path}." if missing else str(error.detail),
        remedy="Start from the list of jobs." if missing else None,
    )
    if request.url.path.startswith("/v1/"):  # programs get errors in the API's shape
        return JSONResponse(ErrorResponse(error=body).model_dump(), status_code=error.status_code)
    return page(request, "error.html", status=error.status_code, error=body)


def create_dashboard(api: ASGIApp) -> Starlette:
    """The pages as an application that gets everything it shows from `api`, with the caller's cookies.

    The server passes itself as the API and sends requests that are not its own routes here. Nothing here
    needs a lifespan.
    """
    application = Starlette(
        routes=[
            Route("/", jobs.jobs_page),
            Route("/jobs/{job_id}", job.overview_page),
            Route("/jobs/{job_id}/charts", job.charts_page),
            Route("/jobs/{job_id}/system", job.system_page),
            Route("/jobs/{job_id}/spec", job.spec_page),
            Route("/jobs/{job_id}/part/{part}", job.job_part),
            Route("/jobs/{job_id}/cancel", job.cancel, methods=["GET", "POST"]),
            Route("/jobs/{job_id}/steps/{step}", steps.step_page),
            Route("/jobs/{job_id}/steps/{step}/groups/{group}", group.group_page),
            Route("/jobs/{job_id}/steps/{step}/trajectories/{index}", trajectory.trajectory_page),
            Route("/jobs/{job_id}/steps/{step}/replays", replays.form_page),
            Route("/jobs/{job_id}/steps/{step}/replays", replays.ask, methods=["POST"]),
            Route("/jobs/{job_id}/replays/{replay_id}", replays.replay_page),
            Route("/jobs/{job_id}/log", logs.log_page),
            Route("/jobs/{job_id}/log/download", logs.download),
            Route("/new", submit.form_page),
            Route("/new", submit.submit, methods=["POST"]),
            Route("/cluster", cluster.cluster_page),
            Route("/login", signin.login_page),
            Route("/login", signin.sign_in, methods=["POST"]),
            Route("/login/oidc", signin.to_provider),
            Route("/login/oidc/callback", signin.from_provider),
            Route("/login/{code}", signin.code_page),
            Route("/login/{code}", signin.sign_in_with_code, methods=["POST"]),
            Route("/account", account.account_page),
            Route("/account/password", account.set_password, methods=["POST"]),
            Route("/account/keys", account.create_key, methods=["POST"]),
            Route("/account/keys/{key_id}/revoke", account.revoke_key, methods=["POST"]),
            Route("/account/sessions/{session_id}/end", account.end_session, methods=["POST"]),
            Route("/device", account.device_page),
            Route("/device", account.decide_device, methods=["POST"]),
            Route("/logout", signin.sign_out, methods=["POST"]),
            Route("/static/{path:path}", assets.static_file),
        ],
        middleware=[Middleware(SecurityHeaders)],
        exception_handlers={
            ApiError: _refused,
            ServerUnreachableError: _unanswered,
            HTTPException: _http_error,
        },
    )
    application.state.api = api
    return application
