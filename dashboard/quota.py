"""A project's quota: what it is guaranteed, may borrow and uses. Administrators change it here."""

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api
from dashboard.api import require_same_origin
from dashboard.parameters import checked, form_texts
from dashboard.rendering import page
from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody
from powermean.contracts.sharing import ProjectQuota, QuotaChange

NUMBERS = ("gpu_quota", "gpu_limit", "cpu_quota", "cpu_limit", "version")
FIELDS = (*NUMBERS, "weight")


async def quota_page(
    request: Request, error: ErrorBody | None = None, given: dict[str, str] | None = None, status: int = 200
) -> Response:
    """GET /projects/{project}/quota."""
    name = request.path_params["project"]
    async with api.client(request) as client:
        project = await client.get_project(name)
        quotas = await client.quotas()
    quota = next((one for one in quotas.items if one.project == name), None)
    if quota is None:
        raise HTTPException(404)
    warned = request.query_params.get("changed") is not None and quotas.cluster is not None
    context: dict[str, Any] = {"error": error, "given": (given or {}) | _version(quota, error, given)}
    return page(
        request,
        "quota.html",
        status,
        project=project,
        quota=quota,
        cluster=quotas.cluster,
        warned=warned,
        **context,
    )


async def change(request: Request) -> Response:
    """POST /projects/{project}/quota: for administrators."""
    require_same_origin(request)
    given = await form_texts(request, *FIELDS)
    try:
        wanted = checked(QuotaChange, _read(given))
        async with api.client(request) as client:
            await client.change_quota(request.path_params["project"], wanted)
    except ApiError as refused:
        if refused.status == 401:
            raise
        return await quota_page(request, refused.body, given, refused.status)
    return RedirectResponse(f"/projects/{request.path_params['project']}/quota?changed", status_code=303)


def _version(quota: ProjectQuota, error: ErrorBody | None, given: dict[str, str] | None) -> dict[str, str]:
    """After a conflict the page shows what is there now, so the next try is about that."""
    if given is None or error is None or error.code != "conflict":
        return {}
    return {"version": str(quota.version)}


def _read(given: dict[str, str]) -> dict[str, Any]:
    """Texts as the API's values; no limit is an empty field. What is no number is left for the contract."""
    values: dict[str, Any] = {}
    for name, text in given.items():
        text = text.strip()
        if name.endswith("_limit") and text == "":
            values[name] = None
        else:
            values[name] = _number(text, int if name in NUMBERS else float)
    return values


def _number(text: str, kind: type[int] | type[float]) -> int | float | str:
    try:
        return kind(text)
    except ValueError:
        return text
