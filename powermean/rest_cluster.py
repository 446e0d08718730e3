"""The calls about nodes, pools, servers, shared engines and priority classes: see rest.py."""

from datetime import datetime
from urllib.parse import quote

from powermean.calls import Call, nothing, params, reads
from powermean.contracts.api import NodeClosing, NodeDrain, NodeList, NodeSamples, NodeView, ServerList
from powermean.contracts.engines import EngineService, EngineServiceList, EngineSpec
from powermean.contracts.pools import PoolList, PoolView
from powermean.contracts.priorities import PriorityClass, PriorityClassList, PriorityRank


def nodes() -> Call[NodeList]:
    return Call("GET", "/v1/nodes", reads(NodeList))


def get_node(node_id: str) -> Call[NodeView]:
    return Call("GET", _node_path(node_id), reads(NodeView))


def node_samples(node_id: str, since: datetime | None = None) -> Call[NodeSamples]:
    """What the node used, every ten seconds of the last hour, or after a time (with its time zone)."""
    given = params(since=since.isoformat() if since is not None else None)
    return Call("GET", _node_path(node_id, "/samples"), reads(NodeSamples), given)


def cordon_node(node_id: str, reason: str | None = None) -> Call[NodeView]:
    """Give the node nothing new; what runs there goes on. For administrators."""
    body = NodeClosing(reason=reason).model_dump(mode="json")
    return Call("POST", _node_path(node_id, "/cordon"), reads(NodeView), json=body)


def drain_node(node_id: str, reason: str | None = None, at: datetime | None = None) -> Call[NodeView]:
    """Empty the node, now or at a time (with its time zone): its jobs go on elsewhere. For administrators."""
    body = NodeDrain(reason=reason, at=at).model_dump(mode="json")
    return Call("POST", _node_path(node_id, "/drain"), reads(NodeView), json=body)


def uncordon_node(node_id: str) -> Call[NodeView]:
    """Open the node again. For administrators."""
    return Call("POST", _node_path(node_id, "/uncordon"), reads(NodeView))


def remove_node(node_id: str) -> Call[None]:
    """Forget a node that is gone for good; refused while it is alive or runs attempts. For administrators."""
    return Call("DELETE", _node_path(node_id), nothing)


def _node_path(node_id: str, rest: str = "") -> str:
    return f"/v1/nodes/{quote(node_id, safe='')}{rest}"


def servers() -> Call[ServerList]:
    """The service's server processes, and which of them leads. For administrators and auditors."""
    return Call("GET", "/v1/servers", reads(ServerList))


def engines() -> Call[EngineServiceList]:
    return Call("GET", "/v1/engines", reads(EngineServiceList))


def get_engine(engine_id: str) -> Call[EngineService]:
    return Call("GET", f"/v1/engines/{quote(engine_id, safe='')}", reads(EngineService))


def create_engine(spec: EngineSpec) -> Call[EngineService]:
    """Declare an engine that LoRA jobs on its model share. For administrators."""
    body = spec.model_dump(mode="json")
    return Call("POST", "/v1/engines", reads(EngineService), json=body)


def remove_engine(engine_id: str) -> Call[EngineService]:
    """Let it take no new jobs, and go when its present ones have ended. For administrators."""
    return Call("DELETE", f"/v1/engines/{quote(engine_id, safe='')}", reads(EngineService))


def priorities() -> Call[PriorityClassList]:
    """The priority classes, the highest first."""
    return Call("GET", "/v1/priorities", reads(PriorityClassList))


def set_priority_class(name: str, rank: PriorityRank) -> Call[PriorityClass]:
    """Make a class, or change one. For administrators."""
    path = f"/v1/priorities/{quote(name, safe='')}"
    return Call("PUT", path, reads(PriorityClass), json=rank.model_dump())


def remove_priority_class(name: str) -> Call[None]:
    """Remove a class that no live job has. For administrators."""
    return Call("DELETE", f"/v1/priorities/{quote(name, safe='')}", nothing)


def pools() -> Call[PoolList]:
    """Where nodes come from when there is work, and what each pool has."""
    return Call("GET", "/v1/pools", reads(PoolList))


def get_pool(name: str) -> Call[PoolView]:
    """One pool."""
    return Call("GET", f"/v1/pools/{quote(name, safe='')}", reads(PoolView))
