"""A node's page: what it has, how its GPUs are, what runs there; closing it and opening it again."""

import asyncio
from datetime import UTC, datetime

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from dashboard import api, use
from dashboard.api import require_same_origin
from dashboard.parameters import form_texts
from dashboard.rendering import page
from powermean.calls import ApiError
from powermean.contracts.api import ErrorBody


async def node_page(request: Request, *, error: ErrorBody | None = None, status: int = 200) -> Response:
    """GET /nodes/{node_id}."""
    async with api.client(request) as client:
        node_id = request.path_params["node_id"]
        node, samples = await asyncio.gather(client.get_node(node_id), client.node_samples(node_id))
    return page(
        request,
        "node.html",
        status=status,
        node=node,
        error=error,
        use_data=use.script_data([node], each="gpu"),
        used_rows=use.table(samples.items),
    )


async def change(request: Request) -> Response:
    """POST /nodes/{node_id}/cordon, drain or uncordon."""
    require_same_origin(request)
    node_id, what = request.path_params["node_id"], request.path_params["what"]
    given = await form_texts(request, "reason", "at")
    reason = given["reason"] or None
    try:
        async with api.client(request) as client:
            match what:
                case "cordon":
                    await client.cordon_node(node_id, reason)
                case "drain":
                    await client.drain_node(node_id, reason, _time(given["at"]))
                case "uncordon":
                    await client.uncordon_node(node_id)
                case _:
                    raise HTTPException(404)
    except ApiError as refused:
        if refused.status in (401, 403, 404):
            raise
        return await node_page(request, error=refused.body, status=refused.status)
    return RedirectResponse(f"/nodes/{node_id}", status_code=303)


def _time(text: str) -> datetime | None:
    """Of a field that asks for UTC: a browser doesn't send its time zone."""
    try:
        return datetime.fromisoformat(text).replace(tzinfo=UTC) if text else None
    except ValueError as error:
        body = ErrorBody(code="invalid", message=f"{text[:40]} is no time", remedy="Write 2026-12-01T22:00.")
        raise ApiError(422, body) from error
