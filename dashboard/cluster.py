"""The cluster's page: who holds what and since when, quotas, the queue, nodes, engines that jobs share."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from dashboard import api, assets
from dashboard.api import is_fragment
from dashboard.rendering import page
from dashboard.viewer import viewer_of
from powermean.async_client import AsyncClient
from powermean.contracts.api import NodeView
from powermean.contracts.attempts import GpuInfo
from powermean.contracts.lanes import ClusterLanes, Lane, LaneAttempt
from powermean.contracts.sharing import ProjectQuota, QuotaList, Share

WINDOWS = {"1h": timedelta(hours=1), "6h": timedelta(hours=6), "24h": timedelta(hours=24)}
PARTS = ("queue", "quotas", "places", "pools")
QUEUE_SHOWN = 50


@dataclass(frozen=True)
class Counts:
    """How many GPUs (or CPU slots) there are, and how many are taken, idle and out of use."""

    total: int
    taken: int
    idle: int
    unusable: int


@dataclass(frozen=True)
class Place:
    """A GPU or CPU slot: who has it now and since when, and why nobody gets it, if nobody does."""

    lane: Lane
    since: datetime | None  # None: no job has it
    job: LaneAttempt | None  # None: none has it, or one that the viewer may not see
    gpu: GpuInfo | None
    out: str | None
    busy: float  # share of the window

    @property
    def taken(self) -> bool:
        return self.since is not None or self.lane.engine is not None


@dataclass(frozen=True)
class Bar:
    """A project's share on a scale from 0 to 100."""

    share: Share
    own: float  # used, within the quota
    borrowed: float
    quota: float
    limit: float | None  # None: no limit, or beyond the scale


async def cluster_page(request: Request) -> Response:
    """GET /cluster; htmx asks for its nodes and engines again and again."""
    async with api.client(request) as client:
        if is_fragment(request):
            nodes, engines = await asyncio.gather(client.nodes(), client.engines())
            return page(request, "fragments/nodes.html", nodes=nodes.items, engines=engines.items)
        nodes, engines, *parts = await asyncio.gather(
            client.nodes(), client.engines(), *(_part(request, client, part) for part in PARTS)
        )
    context: dict[str, Any] = {}
    for part in parts:
        context |= part
    return page(
        request,
        "cluster.html",
        nodes=nodes.items,
        engines=engines.items,
        install=assets.INSTALL,
        **context,
    )


async def cluster_part(request: Request) -> Response:
    """GET /cluster/part/{one of PARTS}: htmx swaps it while the page is open."""
    part = request.path_params["part"]
    if part not in PARTS:
        raise HTTPException(404)
    await viewer_of(request)
    async with api.client(request) as client:
        context = await _part(request, client, part)
    return page(request, f"fragments/{part}.html", **context)


async def _part(request: Request, client: AsyncClient, part: str) -> dict[str, Any]:
    if part == "queue":
        return {"queue": await client.queue(limit=QUEUE_SHOWN)}
    if part == "pools":
        return {"pools": (await client.pools()).items}
    if part == "quotas":
        quotas = await client.quotas()
        return {"quotas": quotas, "bars": {one.project: bars(one, quotas) for one in quotas.items}}
    window = request.query_params.get("window", "1h")
    if window not in WINDOWS:
        raise HTTPException(400, f"window must be one of {', '.join(WINDOWS)}")
    since = datetime.now(UTC) - WINDOWS[window] if window != "1h" else None
    lanes, nodes = await asyncio.gather(client.lanes(since), client.nodes())
    found = places(lanes, nodes.items)
    return {
        "lanes": lanes,
        "places": found,
        "window": window,
        "windows": tuple(WINDOWS),
        "gpus": counts([place for place in found if place.lane.gpu]),
        "slots": counts([place for place in found if not place.lane.gpu]),
        "lane_data": {"seconds": round((lanes.until - lanes.since).total_seconds()), "window": window},
    }


def places(lanes: ClusterLanes, nodes: Sequence[NodeView]) -> list[Place]:
    """The lanes with what their nodes say of them."""
    by_id = {node.id: node for node in nodes}
    gpus = {gpu.uuid: gpu for node in nodes for gpu in node.gpus}
    length = (lanes.until - lanes.since).total_seconds()
    found = []
    for lane in lanes.lanes:
        span = next((span for span in lane.spans if span.end is None), None)
        gpu = gpus.get(lane.gpu or "")
        found.append(
            Place(
                lane=lane,
                since=span.start if span is not None else None,
                job=lanes.attempts[span.attempt] if span is not None and span.attempt else None,
                gpu=gpu,
                out=_out_of_use(lane, by_id.get(lane.node), gpu),
                busy=lane.busy_s / length,
            )
        )
    return found


def _out_of_use(lane: Lane, node: NodeView | None, gpu: GpuInfo | None) -> str | None:
    """Why no job gets it."""
    if not lane.known:
        return "not connected"
    if gpu is not None and gpu.unhealthy:
        return gpu.unhealthy
    if node is None:
        return None
    if node.closed:
        return f"{node.closed}: {node.closed_reason}" if node.closed_reason else node.closed
    return f"the disk of {node.full_disk} is full" if node.full_disk else None


def counts(places: Sequence[Place]) -> Counts:
    """What there is on connected nodes. What is out of use and still held counts as taken."""
    present = [place for place in places if place.lane.known]
    taken = sum(place.taken for place in present)
    unusable = sum(place.out is not None and not place.taken for place in present)
    return Counts(len(present), taken, len(present) - taken - unusable, unusable)


def bars(quota: ProjectQuota, all_: QuotaList) -> dict[str, Bar]:
    """The project's bars; all projects' are drawn on one scale for each kind of resource."""
    found = {}
    for name in ("gpus", "cpu_slots"):
        shares: list[Share] = [getattr(one, name) for one in all_.items]
        ends = [max(share.quota, share.limit or 0, share.used) for share in shares]
        most = max([1, *ends])
        share: Share = getattr(quota, name)
        scale = 100 / most
        found[name] = Bar(
            share=share,
            own=scale * min(share.used, share.quota),
            borrowed=scale * share.borrowed,
            quota=scale * share.quota,
            limit=None if share.limit is None else scale * share.limit,
        )
    return found
