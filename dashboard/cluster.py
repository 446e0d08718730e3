"""The cluster's page: nodes, what they have and what runs there; engines that jobs share."""

import asyncio

from starlette.requests import Request
from starlette.responses import Response

from dashboard import api
from dashboard.api import is_fragment
from dashboard.rendering import page


async def cluster_page(request: Request) -> Response:
    """GET /cluster."""
    async with api.client(request) as client:
        nodes, engines = await asyncio.gather(client.nodes(), client.engines())
    template = "fragments/nodes.html" if is_fragment(request) else "cluster.html"
    return page(request, template, nodes=nodes.items, engines=engines.items)
