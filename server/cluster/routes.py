"""Nodes for people, and a node's own report."""

from typing import Annotated

from fastapi import APIRouter, Path, status

from powermean.contracts.api import NodeList
from powermean.contracts.attempts import NodeReport
from server.cluster import nodes
from server.db.session import RequestDatabase
from server.identity.access import CurrentNode, CurrentPerson
from server.settings import RequestSettings

router = APIRouter(prefix="/v1/nodes", tags=["nodes"])

NodeId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]


@router.get("", summary="List the nodes")
def list_nodes(person: CurrentPerson, database: RequestDatabase, settings: RequestSettings) -> NodeList:
    """What each node has, whether it is alive, and what runs there."""
    with database.read() as session:
        return NodeList(items=tuple(nodes.list_nodes(session, settings)))


@router.put("/{node_id}", status_code=status.HTTP_204_NO_CONTENT, summary="Report a node")
def put_node(node_id: NodeId, report: NodeReport, node: CurrentNode, database: RequestDatabase) -> None:
    """Sent every few seconds: the node's inventory, and the attempts whose processes are alive there."""
    with database.write() as session:
        nodes.accept_report(session, node_id, report)
