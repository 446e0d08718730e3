"""Nodes for people, and a node's own report."""

from typing import Annotated

from fastapi import APIRouter, Path, Request

from powermean.contracts.api import NodeList
from powermean.contracts.attempts import NodeReport
from powermean.contracts.engines import NodeOrders
from powermean.tokens import Verb, sign_attempt_token
from server.cluster import engines, nodes
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


@router.put("/{node_id}", summary="Report a node")
def put_node(
    node_id: NodeId, report: NodeReport, node: CurrentNode, request: Request, database: RequestDatabase
) -> NodeOrders:
    """Sent every few seconds: the node's inventory, and what runs there. The answer says what is to run."""
    private_key = request.app.state.key_pair.private_pem

    def sign(engine_id: str, generation: int) -> str:
        """For the engine's state and numbers; the engine's id is no job's, so it publishes nothing."""
        return sign_attempt_token(private_key, engine_id, generation, verbs=(Verb.GENERATE,))

    with database.write() as session:
        nodes.accept_report(session, node_id, report)
        session.flush()
        return engines.orders(session, node_id, sign)
