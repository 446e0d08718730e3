"""The dashboard: web pages over the REST API."""

from contextlib import suppress

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
    audit,
    cluster,
    group,
    job,
    jobs,
    logs,
    nodes,
    people,
    projects,
    quota,
    replays,
    secrets,
    signin,
    steps,
    storage,
    submit,
    trajectory,
    usage,
)
from dashboard.api import is_fragment, login_address
from dashboard.rendering import page
from dashboard.viewer import viewed, viewer_of
from powermean.calls import ApiError, ServerUnreachableError
from powermean.contracts.api import ErrorBody, ErrorResponse

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
    await _know_viewer(request)
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
    await _know_viewer(request)
    return page(request, "error.html", status=error.status_code, error=body)


async def _know_viewer(request: Request) -> None:
    """For the head of an error's page, which also strangers see."""
    with suppress(ApiError, ServerUnreachableError):
        await viewer_of(request)


def create_dashboard(api: ASGIApp) -> Starlette:
    """The pages as an application that gets everything it shows from `api`, with the caller's cookies.

    The server passes itself as the API and sends requests that are not its own routes here. Nothing here
    needs a lifespan.
    """
    application = Starlette(
        routes=[
            Route("/", viewed(jobs.jobs_page)),
            Route("/jobs/{job_id}", viewed(job.overview_page)),
            Route("/jobs/{job_id}/charts", viewed(job.charts_page)),
            Route("/jobs/{job_id}/system", viewed(job.system_page)),
            Route("/jobs/{job_id}/spec", viewed(job.spec_page)),
            Route("/jobs/{job_id}/part/{part}", job.job_part),
            Route("/jobs/{job_id}/priority", viewed(job.priority), methods=["GET", "POST"]),
            Route("/jobs/{job_id}/pause", viewed(job.pause), methods=["POST"]),
            Route("/jobs/{job_id}/resume", viewed(job.resume), methods=["POST"]),
            Route("/jobs/{job_id}/cancel", viewed(job.cancel), methods=["GET", "POST"]),
            Route("/jobs/{job_id}/steps/{step}", viewed(steps.step_page)),
            Route("/jobs/{job_id}/steps/{step}/groups/{group}", viewed(group.group_page)),
            Route("/jobs/{job_id}/steps/{step}/trajectories/{index}", viewed(trajectory.trajectory_page)),
            Route("/jobs/{job_id}/steps/{step}/replays", viewed(replays.form_page)),
            Route("/jobs/{job_id}/steps/{step}/replays", viewed(replays.ask), methods=["POST"]),
            Route("/jobs/{job_id}/replays/{replay_id}", viewed(replays.replay_page)),
            Route("/jobs/{job_id}/log", viewed(logs.log_page)),
            Route("/jobs/{job_id}/log/download", logs.download),
            Route("/new", viewed(submit.form_page)),
            Route("/new", viewed(submit.submit), methods=["POST"]),
            Route("/cluster", viewed(cluster.cluster_page)),
            Route("/cluster/part/{part}", cluster.cluster_part),
            Route("/usage", viewed(usage.usage_page)),
            Route("/nodes/{node_id}", viewed(nodes.node_page)),
            Route("/nodes/{node_id}/{what}", viewed(nodes.change), methods=["POST"]),
            Route("/projects", viewed(projects.projects_page)),
            Route("/projects", viewed(projects.create), methods=["POST"]),
            Route("/projects/{project}", viewed(projects.project_page)),
            Route("/projects/{project}", viewed(projects.rename), methods=["POST"]),
            Route("/projects/{project}/members", viewed(projects.set_member), methods=["POST"]),
            Route(
                "/projects/{project}/members/{person_id}/remove",
                viewed(projects.remove_member),
                methods=["GET", "POST"],
            ),
            Route("/projects/{project}/quota", viewed(quota.quota_page)),
            Route("/projects/{project}/quota", viewed(quota.change), methods=["POST"]),
            Route("/projects/{project}/datasets", viewed(projects.datasets_page)),
            Route("/people", viewed(people.people_page)),
            Route("/people", viewed(people.add), methods=["POST"]),
            Route("/people/{person_id}", viewed(people.person_page)),
            Route("/people/{person_id}", viewed(people.change), methods=["POST"]),
            Route("/people/{person_id}/invite", viewed(people.invite), methods=["POST"]),
            Route("/people/{person_id}/deactivate", viewed(people.deactivate_page)),
            Route("/storage", viewed(storage.own_storage_page)),
            Route("/projects/{project}/storage", viewed(storage.storage_page)),
            Route("/projects/{project}/storage/limit", viewed(storage.set_limit), methods=["POST"]),
            Route("/projects/{project}/retention", viewed(storage.set_retention), methods=["POST"]),
            Route(
                "/jobs/{job_id}/checkpoints/{step:int}/pin", viewed(storage.pin_checkpoint), methods=["POST"]
            ),
            Route("/jobs/{job_id}/delete", viewed(storage.delete_job), methods=["GET", "POST"]),
            Route("/jobs/{job_id}/model/delete", viewed(storage.delete_model), methods=["GET", "POST"]),
            Route(
                "/jobs/{job_id}/checkpoints/{step:int}/delete",
                viewed(storage.delete_checkpoint),
                methods=["GET", "POST"],
            ),
            Route("/datasets/{dataset_id}/delete", viewed(storage.delete_dataset), methods=["GET", "POST"]),
            Route("/audit", viewed(audit.audit_page)),
            Route("/projects/{project}/audit", viewed(audit.audit_page)),
            Route("/me/secrets", viewed(secrets.secrets_page)),
            Route("/me/secrets", viewed(secrets.set_secret), methods=["POST"]),
            Route("/me/secrets/{name}/remove", viewed(secrets.remove_secret), methods=["GET", "POST"]),
            Route("/projects/{project}/secrets", viewed(secrets.secrets_page)),
            Route("/projects/{project}/secrets", viewed(secrets.set_secret), methods=["POST"]),
            Route(
                "/projects/{project}/secrets/{name}/remove",
                viewed(secrets.remove_secret),
                methods=["GET", "POST"],
            ),
            Route("/login", signin.login_page),
            Route("/login", signin.sign_in, methods=["POST"]),
            Route("/login/oidc", signin.to_provider),
            Route("/login/oidc/callback", signin.from_provider),
            Route("/login/oidc/link", viewed(signin.link_provider), methods=["POST"]),
            Route("/login/{code}", signin.code_page),
            Route("/login/{code}", signin.sign_in_with_code, methods=["POST"]),
            Route("/account", viewed(account.account_page)),
            Route("/account/password", viewed(account.set_password), methods=["POST"]),
            Route("/account/keys", viewed(account.create_key), methods=["POST"]),
            Route("/account/keys/{key_id}/revoke", viewed(account.revoke_key), methods=["POST"]),
            Route("/account/sessions/{session_id}/end", viewed(account.end_session), methods=["POST"]),
            Route("/device", viewed(account.device_page)),
            Route("/device", viewed(account.decide_device), methods=["POST"]),
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
