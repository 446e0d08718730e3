"""Nodes for people, and a node's own report."""

import logging
from typing import Annotated

from fastapi import APIRouter, Path, Query, status
from pydantic import AwareDatetime

from powermean import __version__
from powermean.contracts.api import NodeClosing, NodeDrain, NodeList, NodeSamples, NodeView
from powermean.contracts.attempts import NodeReport
from powermean.contracts.checks import NodeAnswer, NodeQuestion
from powermean.contracts.engines import NodeOrders
from powermean.contracts.names import NODE_NAME
from powermean.tokens import Verb, sign_attempt_token
from server import nodes
from server.audit.journal import note
from server.cluster import drains, engines, inventory, pilots, samples
from server.db.session import database_now
from server.identity.callers import Caller
from server.routes.access import CurrentNode, KnownCallerRoute, May
from server.routes.dependencies import (
    CallersDatabase,
    RequestDatabase,
    RequestKeyPair,
    RequestSettings,
    RequestStore,
)

log = logging.getLogger(__name__)
router = APIRouter(prefix="/v1/nodes", tags=["nodes"], route_class=KnownCallerRoute)

NodeId = Annotated[str, Path(min_length=1, max_length=64, pattern=NODE_NAME)]


@router.get("", summary="List the nodes")
def list_nodes(
    caller: Annotated[Caller, May("cluster.read")], database: CallersDatabase, settings: RequestSettings
) -> NodeList:
    """What each node has, whether it is alive, and what runs there."""
    with database.read() as session:
        return NodeList(items=tuple(inventory.list_nodes(session, settings)))


@router.get("/{node_id}", summary="Show a node")
def get_node(
    node_id: NodeId,
    caller: Annotated[Caller, May("cluster.read")],
    database: CallersDatabase,
    settings: RequestSettings,
) -> NodeView:
    """One node, as in the list."""
    with database.read() as session:
        return inventory.show_node(session, settings, node_id)


@router.get("/{node_id}/samples", summary="Show what a node used")
def get_samples(
    node_id: NodeId,
    caller: Annotated[Caller, May("cluster.read")],
    database: CallersDatabase,
    settings: RequestSettings,
    since: Annotated[AwareDatetime | None, Query(description="After this time; an hour is kept.")] = None,
) -> NodeSamples:
    """Every ten seconds of the last hour: how busy its GPUs were, and what your attempts used."""
    with database.read() as session:
        inventory.show_node(session, settings, node_id)
        return samples.history(session, node_id, since)


@router.post("/{node_id}/cordon", summary="Give a node nothing new")
def cordon_node(
    node_id: NodeId,
    caller: Annotated[Caller, May("cluster.change")],
    database: CallersDatabase,
    settings: RequestSettings,
    asked: NodeClosing = NodeClosing(),
) -> NodeView:
    """What runs there goes on. A node that drains goes on draining. Administrators only."""
    with database.write() as session:
        drains.cordon(session, node_id, asked, caller.name)
        note(reason=asked.reason)
        session.flush()
        return inventory.show_node(session, settings, node_id)


@router.post("/{node_id}/drain", summary="Empty a node")
def drain_node(
    node_id: NodeId,
    caller: Annotated[Caller, May("cluster.change")],
    database: CallersDatabase,
    settings: RequestSettings,
    asked: NodeDrain = NodeDrain(),
) -> NodeView:
    """Jobs there save a checkpoint at their next step and go on elsewhere; shared engines move.

    The node takes nothing new, also after a restart, until it is uncordoned. With `at`, all this begins then.
    Administrators only.
    """
    with database.write() as session:
        drains.drain(session, node_id, asked, caller.name)
        note(reason=asked.reason, at=asked.at.isoformat() if asked.at is not None else None)
        session.flush()
        return inventory.show_node(session, settings, node_id)


@router.post("/{node_id}/uncordon", summary="Open a node again")
def uncordon_node(
    node_id: NodeId,
    caller: Annotated[Caller, May("cluster.change")],
    database: CallersDatabase,
    settings: RequestSettings,
) -> NodeView:
    """Ends a cordon or a drain, also a planned one. Jobs that were told to leave still do.

    Administrators only.
    """
    with database.write() as session:
        drains.uncordon(session, node_id)
        session.flush()
        return inventory.show_node(session, settings, node_id)


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
            pilots.check_owner(session, node_id, node.bound)
            rival = inventory.accept_report(session, settings, node_id, report)
            session.flush()
            return engines.orders(session, node_id, sign).model_copy(update={"rival": rival})
    except nodes.NodeNameTakenError as error:
        log.warning("refused the worker on host %s: %s", report.hostname, error)
        with database.write() as session:
            nodes.note_rival(session, node_id, report.hostname)
        raise


@router.post("/{node_id}/check", summary="Check a node against the server")
def check_node(
    node_id: NodeId,
    question: NodeQuestion,
    node: CurrentNode,
    keys: RequestKeyPair,
    store: RequestStore,
    database: RequestDatabase,
    settings: RequestSettings,
) -> NodeAnswer:
    """For `powermean doctor` on the node: clock, version and name, and whether both have the same store.

    Changes nothing.
    """
    # Before the transaction: a slow store must not hold it open.
    unreadable = None if question.probe is None else nodes.why_unreadable(store, question.probe)
    with database.read() as session:
        return NodeAnswer(
            version=__version__,
            now=database_now(session),
            probe_error=unreadable,
            holder=nodes.other_holder(session, settings, node_id, question.instance),
            public_key=keys.public_pem,
        )


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
