"""Nodes for people, and a node's own report."""

import logging
from typing import Annotated

from fastapi import APIRouter, Path, status

from powermean.contracts.api import NodeList
from powermean.contracts.attempts import NodeReport
from powermean.contracts.engines import NodeOrders
from powermean.tokens import Verb, sign_attempt_token
from server import nodes
from server.cluster import engines, inventory
from server.identity.callers import Caller
from server.routes.access import CurrentNode, KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase, RequestDatabase, RequestKeyPair, RequestSettings

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/nodes", tags=["nodes"], route_class=KnownCallerRoute)

NodeId = Annotated[str, Path(min_length=1, max_length=64, pattern=r"^[\w.-]+$")]


@router.get("", summary="List the nodes")
def list_nodes(
    caller: Annotated[Caller, May("cluster.read")], database: CallersDatabase, settings: RequestSettings
) -> NodeList:
    """What each node has, whether it is alive, and what runs there."""
    with database.read() as session:
        return NodeList(items=tuple(inventory.list_nodes(session, settings)))


@router.put("/{node_id}", summary="Report a node")
def put_node(
    node_id: NodeId,
    report: NodeReport,
    node: CurrentNode,
    keys: RequestKeyPair,
    database: RequestDatabase,
    settings: RequestSettings,
) -> NodeOrders:
    """Sent every few seconds: the node's inventory and what runs there. The answer says what should run.

    409 `node_name_taken`: the name is another worker's.
    """

    def sign(engine_id: str, generation: int) -> str:
        """A token to read the engine's state; since its id is no job's, it can't publish anything."""
        return sign_attempt_token(keys.private_pem, engine_id, generation, verbs=(Verb.GENERATE,))

    try:
        with database.write() as session:
            rival = inventory.accept_report(session, settings, node_id, report)
            session.flush()
            return engines.orders(session, node_id, sign).model_copy(update={"rival": rival})
    except nodes.NodeNameTakenError as error:
        log.warning("refused the worker on host %s: %s", report.hostname, error)
        with database.write() as session:
            nodes.note_rival(session, node_id, report.hostname)
        raise


@router.delete("/{node_id}", status_code=status.HTTP_204_NO_CONTENT, summary="Remove a node")
def delete_node(
    node_id: NodeId,
    caller: Annotated[Caller, May("cluster.change")],
    database: CallersDatabase,
    settings: RequestSettings,
) -> None:
    """For a node that is gone for good: refused while it is alive or attempts hold something there.

    Administrators only.
    """
    with database.write() as session:
        nodes.remove(session, settings, node_id)
