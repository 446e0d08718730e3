"""Calls of a node and an attempt's supervisor: claim, heartbeat, checkpoints, finish."""

from typing import Annotated

from fastapi import APIRouter, Header, status
from fastapi.responses import JSONResponse

from powermean.contracts.attempts import (
    CheckpointCommit,
    Claim,
    ClaimRequest,
    ClaimWithSecrets,
    Finish,
    Heartbeat,
    HeartbeatReply,
)
from powermean.contracts.revisions import for_workers
from powermean.tokens import sign_attempt_token
from server.cluster import engines
from server.errors import ConflictError
from server.jobs import attempts, checkpoints, forks, repository, service
from server.jobs.stored_spec import SpecRefusedError
from server.jobs.views import allocation_view, runnable_spec
from server.routes.access import CurrentAttempt, CurrentNode, FirstNode, KnownCallerRoute, RenewingAttempt
from server.routes.dependencies import RequestDatabase, RequestKeyPair, RequestSettings, RequestVault
from server.vault.key_file import KeyUnavailableError
from server.vault.secrets import values_of

ClaimId = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=64,
        description="Of the claim: with the same key it may be repeated, as its answer may have been lost.",
    ),
]
router = APIRouter(prefix="/v1/attempts/{attempt_id}", tags=["attempts"], route_class=KnownCallerRoute)


@router.post("/claim", response_model=ClaimWithSecrets, summary="Claim an attempt")
def claim_attempt(
    attempt_id: str,
    node: CurrentNode,
    keys: RequestKeyPair,
    database: RequestDatabase,
    settings: RequestSettings,
    vault: RequestVault,
    request: ClaimRequest | None = None,
    idempotency_key: ClaimId = None,
) -> JSONResponse:
    """Exactly one claim of each node's part succeeds; the answer contains everything needed to run it."""
    with database.write() as session:
        claimed = attempts.claim(
            session, settings, attempt_id, request.node_id if request else None, idempotency_key
        )
        job, attempt = claimed.job, claimed.attempt
        node.check(claimed.node_id)
        try:
            secrets, spec = values_of(session, vault, job), runnable_spec(job)
        except (KeyUnavailableError, SpecRefusedError) as error:
            refused = ConflictError(str(error), remedy="Drop the task.")
            if not claimed.repeated:
                attempts.refuse(session, claimed, error.error)
        else:
            claim = Claim(
                attempt_id=attempt.id,
                job_id=job.id,
                number=attempt.number,
                node_rank=claimed.node_rank,
                spec=spec,
                allocations=tuple(allocation_view(allocation) for allocation in claimed.allocations),
                token=sign_attempt_token(
                    keys.private_pem, job.id, attempt.number, node_rank=claimed.node_rank
                ),
                lease_s=settings.lease_s,
                beat_s=settings.beat_s,
                resume=repository.resume_point(session, job.id),
                dataset=service.dataset_ref(session, spec),
                origin=forks.origin_of(job),
                engine=engines.claimed(session, claimed.allocations),
            )
            return JSONResponse(for_workers(ClaimWithSecrets(claim=claim, secrets=secrets)))
    raise refused


@router.post("/heartbeat", response_model=HeartbeatReply, summary="Renew the lease")
def beat(
    attempt_id: str,
    beat: Heartbeat,
    claims: RenewingAttempt,
    keys: RequestKeyPair,
    database: RequestDatabase,
    settings: RequestSettings,
) -> JSONResponse:
    """The reply says what to do next and contains a fresh token."""
    with database.write() as session:
        heard = attempts.heartbeat(session, settings, attempt_id, claims, beat)
    token = sign_attempt_token(keys.private_pem, claims.job_id, claims.attempt, node_rank=claims.node_rank)
    reply = HeartbeatReply(order=heard.order, token=token, members=heard.members)
    return JSONResponse(for_workers(reply))


@router.post("/checkpoints", status_code=status.HTTP_204_NO_CONTENT, summary="Commit a checkpoint")
def commit_checkpoint(
    attempt_id: str, checkpoint: CheckpointCommit, claims: FirstNode, database: RequestDatabase
) -> None:
    """From now on the job's next attempt resumes from here."""
    with database.write() as session:
        checkpoints.commit(session, attempt_id, claims, checkpoint)


@router.post("/finish", status_code=status.HTTP_204_NO_CONTENT, summary="End an attempt")
def finish_attempt(
    attempt_id: str,
    report: Finish,
    claims: CurrentAttempt,
    database: RequestDatabase,
    settings: RequestSettings,
) -> None:
    """The attempt's processes are gone; what it held is free again."""
    with database.write() as session:
        attempts.finish(session, settings, attempt_id, claims, report)
