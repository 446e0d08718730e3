"""Replays of recorded steps: for people, and for the nodes that compute them."""

from typing import Annotated

from fastapi import APIRouter, Query, Response, status
from fastapi import Path as PathParameter
from fastapi.responses import JSONResponse

from powermean.contracts.renaming import old_names_used
from powermean.contracts.replays import (
    AskedReplay,
    Replay,
    ReplayClaim,
    ReplayedTokens,
    ReplayList,
    ReplayOutcome,
    ReplayRequest,
    ReplayResult,
    ReplayTask,
)
from powermean.contracts.revisions import for_workers
from server.audit.journal import note
from server.db.models import MAX_INTEGER
from server.errors import ConflictError
from server.identity.callers import Caller
from server.jobs.stored_spec import SpecRefusedError
from server.pools.views import naming_pools
from server.replays import service
from server.replays.results import read_result, read_tokens
from server.routes.access import CurrentNode, KnownCallerRoute, May
from server.routes.dependencies import CallersDatabase, RequestDatabase, RequestSettings, RequestStore

router = APIRouter(prefix="/v1", tags=["replays"], route_class=KnownCallerRoute)

Index = Annotated[int, PathParameter(ge=0, le=MAX_INTEGER, description="Place in the rollout batch.")]


@router.post(
    "/jobs/{job_id}/replays",
    status_code=status.HTTP_202_ACCEPTED,
    summary="Replay a step",
    responses={200: {"model": AskedReplay, "description": "Requested before: the stored replay."}},
)
def post_replay(
    job_id: str,
    request: ReplayRequest,
    caller: Annotated[Caller, May("replay.ask")],
    database: CallersDatabase,
    settings: RequestSettings,
    response: Response,
) -> AskedReplay:
    """A node computes p, ESS, weights and losses of the recorded tokens. A failed replay is retried."""
    with database.write() as session:
        asked = service.ask(session, settings, caller.person_id, job_id, request)
        (replay,) = naming_pools(session, settings, [asked.replay])
        note(target=f"{job_id}/{asked.replay.id}")
    response.headers["Location"] = f"/v1/jobs/{job_id}/replays/{asked.replay.id}"
    if not asked.new:
        response.status_code = status.HTTP_200_OK
    used = old_names_used(asked.replay.algorithm, request.set, "set.")
    return AskedReplay(**dict(replay), deprecations=tuple(used))


@router.get("/jobs/{job_id}/replays", summary="List a job's replays")
def list_replays(
    job_id: str,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    settings: RequestSettings,
    step: Annotated[int | None, Query(ge=0, le=MAX_INTEGER, description="Only this step's.")] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> ReplayList:
    """Newest first."""
    with database.read() as session:
        found = service.page(session, settings, job_id, step, limit)
        return ReplayList(items=naming_pools(session, settings, found))


@router.get("/jobs/{job_id}/replays/{replay_id}", summary="Show a replay")
def get_replay(
    job_id: str,
    replay_id: str,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    settings: RequestSettings,
) -> Replay:
    """Its state and, once it is done, its findings by update."""
    with database.read() as session:
        (replay,) = naming_pools(session, settings, [service.show(session, settings, job_id, replay_id)])
    return replay


@router.get("/jobs/{job_id}/replays/{replay_id}/result", summary="A replay's numbers")
def get_result(
    job_id: str,
    replay_id: str,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
) -> ReplayResult:
    """Every covered trajectory in every update, as recorded and as replayed."""
    with database.read() as session:
        ref = service.result_ref(session, job_id, replay_id)
    return read_result(store, ref)


@router.get("/jobs/{job_id}/replays/{replay_id}/tokens/{index}", summary="A trajectory's tokens")
def get_tokens(
    job_id: str,
    replay_id: str,
    index: Index,
    caller: Annotated[Caller, May("job.read")],
    database: CallersDatabase,
    store: RequestStore,
) -> ReplayedTokens:
    """Weights and clips of one trajectory's tokens, as recorded and as replayed."""
    with database.read() as session:
        recorded, replayed = service.tokens_refs(session, job_id, replay_id)
    return read_tokens(store, recorded, replayed, index)


@router.post(
    "/replays/{replay_id}/claim", response_model=ReplayTask, tags=["nodes"], summary="Claim a replay"
)
def claim_replay(
    replay_id: str,
    claim: ReplayClaim,
    node: CurrentNode,
    database: RequestDatabase,
    settings: RequestSettings,
) -> JSONResponse:
    """Everything a node needs to compute it. Other nodes are refused while the claiming one is alive."""
    node.check(claim.node_id)
    with database.write() as session:
        try:
            task = service.claim(session, settings, replay_id, claim.node_id)
        except SpecRefusedError as error:
            service.accept(session, replay_id, ReplayOutcome(error=error.error))
            refused = ConflictError(str(error), remedy="Drop the task: the replay has failed.")
        else:
            return JSONResponse(for_workers(task))
    raise refused


@router.post(
    "/replays/{replay_id}/outcome",
    status_code=status.HTTP_204_NO_CONTENT,
    tags=["nodes"],
    summary="How a replay ended",
)
def post_outcome(
    replay_id: str, outcome: ReplayOutcome, node: CurrentNode, database: RequestDatabase
) -> None:
    """The result, already in the artefact store, or the error."""
    with database.write() as session:
        if node.bound is not None:
            node.check(service.claimed_by(session, replay_id))
        service.accept(session, replay_id, outcome)
