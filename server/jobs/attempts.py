"""Attempts: claimed once, kept alive by heartbeats, ended by a report or by their silence.

Every function runs in the caller's transaction with the job locked. An attempt's number is its fencing token;
a job's next attempt resumes from the last committed checkpoint. On several nodes (members.py) each claims and
beats for itself; the end of one is the end of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, cast

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from powermean.contracts.attempts import (
    AllocationView,
    Finish,
    Heartbeat,
    JobError,
    Member,
    Order,
    OrderCause,
)
from powermean.contracts.names import START_TASK, node_queue
from powermean.contracts.phases import PREPARING_MODEL
from powermean.tokens import AttemptClaims
from server import outbox
from server.db.models import Allocation, Attempt, Job
from server.db.session import database_now
from server.errors import FencedError, ForbiddenError, NotFirstNodeError, NotFoundError
from server.jobs import allocations, endings, members, repository
from server.jobs.events import check_node, fence, lock_job, record_event
from server.jobs.progress import rewind_progress
from server.jobs.states import change_phase, change_state, record_state
from server.jobs.stored_spec import evaluated_every
from server.settings import Settings


def start(session: Session, settings: Settings, job: Job, gang: Sequence[AllocationView]) -> None:
    """Create the next attempt of a queued, locked job on these allocations, with a message to each node."""
    now = database_now(session)
    nodes = [part.node_id for part in gang if part.role == "trainer"]
    checkpoint = repository.latest_checkpoint(session, job.id)
    job.attempt += 1
    job.step = checkpoint.step if checkpoint is not None else 0
    attempt = Attempt(
        id=f"{job.id}.{job.attempt}",
        job_id=job.id,
        number=job.attempt,
        nodes=len(nodes),
        state="starting",
        first_step=checkpoint.step + 1 if checkpoint is not None else 0,
        order="continue",
        lease_expires_at=now + timedelta(seconds=settings.claim_s),
        created_at=now,
    )
    session.add(attempt)
    session.flush()
    allocations.hold(session, attempt.id, gang)
    if len(nodes) > 1:
        members.enlist(session, attempt, nodes, now + timedelta(seconds=settings.claim_s))
    for node_id in nodes:
        outbox.owe(session, START_TASK, node_queue(node_id), attempt.id, now)
    if attempt.number > 1:
        record_event(session, job.id, "rewind", {"attempt": attempt.number, "from_step": attempt.first_step})
        rewind_progress(session, job, evaluated_every(job.spec))
    change_state(session, job, JobState.STARTING, f"starting on {', '.join(nodes)}"[:200])


@dataclass(frozen=True)
class Claimed:
    """What the answer to a claim needs."""

    job: Job
    attempt: Attempt
    allocations: Sequence[Allocation]  # of all nodes
    node_id: str
    node_rank: int
    repeated: bool  # it may run there already


def claim(
    session: Session,
    settings: Settings,
    attempt_id: str,
    node_id: str | None = None,
    claim_id: str | None = None,
) -> Claimed:
    """Make a node's part of the attempt the caller's (None: the first node's): one claim of each succeeds.

    The same claim may be repeated, by its id: its answer may have been lost.

    Raises:
        NotFoundError: there is no such attempt.
        ForbiddenError: the node has no part in it.
        FencedError: it was claimed before, given up, or is not the job's current one.
    """
    job = lock_job(session, attempt_id.rpartition(".")[0])
    now = database_now(session)
    attempt = session.get(Attempt, attempt_id, populate_existing=True)
    if attempt is None:
        raise NotFoundError(f"no attempt {attempt_id}")
    parts = attempt.allocations
    nodes = [part.node_id for part in parts if part.role == "trainer"]
    mine = nodes[0] if node_id is None else node_id
    if mine not in nodes:
        raise ForbiddenError(f"node {mine} has no part in attempt {attempt_id}", remedy="Drop the task.")
    begins = attempt.state == "starting"
    repeated = claim_id is not None and attempt.claim_id == claim_id
    joins = attempt.state == "running" and (attempt.nodes > 1 or repeated)
    if attempt.number != job.attempt or not (begins or joins):
        raise FencedError(
            f"attempt {attempt_id} ({attempt.state}) cannot be claimed: job {job.id} is {job.state}"
            f" at attempt {job.attempt}",
            remedy="Drop the task: somebody else has it, or it is no longer needed.",
        )
    if attempt.nodes > 1:
        node_rank, repeated = members.claim(session, settings, attempt, mine, claim_id, now)
    else:
        attempt.claim_id = claim_id
        node_rank, attempt.lease_expires_at = 0, now + timedelta(seconds=settings.lease_s)
    outbox.settle(session, attempt_id, now, node_queue(mine))
    if begins:
        attempt.state, attempt.claimed_at = "running", now
        change_state(session, job, JobState.RUNNING, PREPARING_MODEL)
    return Claimed(job, attempt, parts, mine, node_rank, repeated)


def refuse(session: Session, claimed: Claimed, why: JobError) -> None:
    """Fail the job of an attempt that was claimed in this transaction: the node never hears of it."""
    now = database_now(session)
    endings.end(session, claimed.attempt, "ended", now, outcome="failed", reason=why.message, error=why)
    _release(session, claimed.attempt, now, claimed.node_id)
    endings.fail(session, claimed.job, why)


@dataclass(frozen=True)
class Heard:
    """What the answer to a heartbeat needs."""

    order: Order
    members: tuple[Member, ...]


def heartbeat(
    session: Session, settings: Settings, attempt_id: str, claims: AttemptClaims, beat: Heartbeat
) -> Heard:
    """Renew the lease; the order says what the attempt should do. The first node's phase is the job's."""
    attempt = fence(session, attempt_id, claims)
    check_node(claims, beat.node_rank)
    now = database_now(session)
    if attempt.nodes > 1:
        nodes = members.beat(session, settings, attempt, beat, now)
    else:
        nodes, attempt.lease_expires_at = (), now + timedelta(seconds=settings.lease_s)
    if beat.node_rank == 0:
        if beat.ran_s is not None:
            attempt.ran_s = max(attempt.ran_s or 0.0, beat.ran_s)
        change_phase(session, lock_job(session, attempt.job_id), beat.phase)
    return Heard(cast(Order, attempt.order), nodes)


def _release(session: Session, attempt: Attempt, now: datetime, node_id: str) -> None:
    """Free what an attempt that has ended holds where none of its processes is left: there, and on nodes that
    never claimed their part. The others say so themselves, or their reports do.
    """
    if attempt.nodes == 1:
        allocations.release(session, attempt.id, now)
        return
    never = members.unclaimed(session, attempt)
    allocations.release_parts(session, attempt.id, now, {node_id, *never})


def order_cancel(session: Session, job: Job, reason: str, now: datetime) -> None:
    """Order the running attempt to stop; its next heartbeat delivers the order."""
    attempt = _current(session, job)
    if attempt is not None:
        _order(attempt, "cancel", "cancelled", reason, now)


def order_stop(
    session: Session,
    job: Job,
    reason: str,
    now: datetime,
    *,
    cause: OrderCause = "preempted",
    made_way_for: str | None = None,
) -> bool:
    """Have a locked job's attempt leave at the end of its step; an order that it has already stays.

    It checkpoints, exits, and the job is queued again, or paused where somebody asked for that. An attempt
    that nobody has claimed leaves at once. `reason` is for the job's people; `made_way_for` is the job that
    gets its place. False: there was nothing to order.
    """
    attempt = _current(session, job)
    if attempt is None or attempt.state not in ("starting", "running") or attempt.order != "continue":
        return False
    _order(attempt, "checkpoint_and_exit", cause, reason, now)
    attempt.made_way_for = made_way_for
    if attempt.state == "running":
        record_state(session, job)
    else:
        endings.end(session, attempt, "ended", now, outcome="cancelled", reason=reason)
        allocations.release(session, attempt.id, now)
        endings.leave(session, job, attempt)
    return True


def order_by_rule(
    session: Session, job: Job, order: Literal["finish", "cancel"], rule: str, now: datetime
) -> None:
    """Have a locked job's running attempt finish early, or end to be tried again, unless it has an order."""
    attempt = _current(session, job)
    if attempt is not None and attempt.state == "running" and attempt.order == "continue":
        _order(attempt, order, "limit" if order == "finish" else "stalled", rule, now)
        record_state(session, job)


def finishes(session: Session, job: Job) -> bool:
    """Whether the job's attempt is ordered to finish early."""
    attempt = _current(session, job)
    return attempt is not None and attempt.order == "finish" and attempt.state == "running"


def _order(attempt: Attempt, order: Order, cause: OrderCause, reason: str, now: datetime) -> None:
    attempt.order, attempt.order_cause = order, cause
    attempt.order_reason, attempt.ordered_at = reason[: endings.REASON_CHARACTERS], now


def withdraw(session: Session, job: Job) -> None:
    """End an attempt that nobody has claimed; it can't be claimed any more."""
    attempt = _current(session, job)
    if attempt is not None and attempt.state == "starting":
        now = database_now(session)
        endings.end(session, attempt, "ended", now, outcome="cancelled", reason=endings.CANCELLED)
        allocations.release(session, attempt.id, now)


def finish(
    session: Session, settings: Settings, attempt_id: str, claims: AttemptClaims, report: Finish
) -> None:
    """The attempt's processes are gone: decide what happens to the job. Repeated reports have no effect."""
    if attempt_id != claims.attempt_id:
        raise ForbiddenError(f"the token does not belong to attempt {attempt_id}")
    check_node(claims, report.node_rank)
    known = session.get(Attempt, attempt_id)
    if known is not None and known.nodes > 1:
        _finish_node(session, settings, attempt_id, claims, report)
        return
    if known is not None and known.state == "ended" and known.outcome == report.outcome:
        return
    attempt = fence(session, attempt_id, claims)
    job = lock_job(session, attempt.job_id)
    now = database_now(session)
    endings.conclude(session, settings, job, attempt, report, now)
    allocations.release(session, attempt.id, now)


def _finish_node(
    session: Session, settings: Settings, attempt_id: str, claims: AttemptClaims, report: Finish
) -> None:
    """One of several nodes has none of the attempt's processes left: what it holds there is free.

    The first node's report ends the attempt; so does another's that tells of a failure. Otherwise that node
    is done, and the attempt goes on until the first one is.
    """
    if report.node_rank > 0 and report.result is not None:
        raise NotFirstNodeError(claims.attempt_id, report.node_rank)
    job = lock_job(session, claims.job_id)
    attempt = session.get_one(Attempt, attempt_id, populate_existing=True)
    now = database_now(session)
    node = members.end(session, attempt, report, now)
    if node is None:
        return
    allocations.release_parts(session, attempt.id, now, {node.node_id})
    if node.node_rank == 0:
        allocations.release_slot(session, attempt.id, now)
    told, ends_all = members.named(node, report), _ends_all(attempt, report)
    if attempt.state == "ended" and ends_all:
        endings.explain(session, job, attempt, told)
    elif attempt.state == "running" and (node.node_rank == 0 or ends_all):
        endings.conclude(session, settings, job, attempt, told, now)
        allocations.release_parts(session, attempt.id, now, members.unclaimed(session, attempt))


def _ends_all(attempt: Attempt, report: Finish) -> bool:
    """Whether the others can't go on without the node: it failed, or left before it was done or told to."""
    stopped = report.outcome != "finished" and attempt.order in ("continue", "finish")
    return report.outcome == "failed" or stopped


@dataclass(frozen=True)
class NodeGone:
    """Somebody who must know it says that a node is over, and all that ran there."""

    node_id: str
    message: str  # how they know, for people
    blameless: bool  # nothing failed: it is no restart of the job's


def lapse(session: Session, settings: Settings, attempt_id: str, gone: NodeGone | None = None) -> bool:
    """Give up an attempt whose lease has expired, and fence its writes. False if the lease still holds.

    With `gone` at once, and what it holds on that node is free: none of its processes is left there. Of an
    attempt that some of its nodes never claimed, nothing failed in the job: it is no restart.
    """
    job = lock_job(session, attempt_id.rpartition(".")[0])
    attempt = session.get(Attempt, attempt_id, populate_existing=True)
    now = database_now(session)
    if (
        attempt is None
        or attempt.state not in ("starting", "running")
        or (gone is None and (attempt.lease_expires_at is None or attempt.lease_expires_at > now))
    ):
        return False
    claimed = attempt.state == "running"
    if gone is not None:
        error = _lost_node(gone)
    elif attempt.nodes == 1:
        error = _silent(attempt, claimed)
    elif silent := members.silent(session, attempt, now):
        error = members.give_up(silent, attempt)
    else:
        return False
    leaves = attempt.order == "checkpoint_and_exit" or job.pause_requested
    reason = "; ".join(filter(None, (attempt.order_reason, error.message))) if leaves else error.message
    endings.end(
        session, attempt, "lapsed", now, outcome="lapsed", reason=reason, error=None if leaves else error
    )
    if not claimed:
        allocations.release(session, attempt.id, now)
    elif attempt.nodes > 1:
        allocations.release_parts(session, attempt.id, now, members.unclaimed(session, attempt))
    if gone is not None:
        allocations.release(session, attempt.id, now, node_id=gone.node_id)
        if attempt.nodes > 1:
            members.lost(session, attempt, gone.node_id)
    if job.cancel_requested:
        change_state(session, job, JobState.CANCELLED)
    elif leaves:
        endings.leave(session, job, attempt)
    elif claimed and error.code != members.GANG_INCOMPLETE and not (gone is not None and gone.blameless):
        endings.restart_or_fail(session, settings, job, error)
    else:
        change_state(session, job, JobState.QUEUED, error.message[:200])
    return True


def _lost_node(gone: NodeGone) -> JobError:
    return JobError(
        code="node_gone", message=gone.message, remedy="Nothing: it goes on from its last checkpoint."
    )


def _silent(attempt: Attempt, claimed: bool) -> JobError:
    if claimed:
        return JobError(
            code="lease_lapsed",
            message=f"attempt {attempt.number} stopped sending heartbeats",
            remedy="Check whether its node is up, can reach the server and has CPU time and memory left.",
        )
    return JobError(
        code="not_claimed",
        message=f"the node did not claim attempt {attempt.number} in time",
        remedy="Check whether the node's worker is running and can reach Redis and the server.",
    )


def overdue(session: Session, now: datetime) -> Sequence[str]:
    """Attempts whose lease or time to be claimed has expired."""
    query = (
        select(Attempt.id)
        .where(Attempt.state.in_(("starting", "running")), Attempt.lease_expires_at <= now)
        .order_by(Attempt.id)
    )
    return session.execute(query).scalars().all()


def extend_leases(session: Session, settings: Settings, now: datetime) -> None:
    """Give every live attempt one full period from now: nobody could renew while there was no leader.

    None has more: a lease that ends later was written by a clock that was ahead.
    """
    for state, period in (("starting", settings.claim_s), ("running", settings.lease_s)):
        until = now + timedelta(seconds=period)
        session.execute(update(Attempt).where(Attempt.state == state).values(lease_expires_at=until))
    members.extend_leases(session, settings, now)


def _current(session: Session, job: Job) -> Attempt | None:
    return session.get(Attempt, f"{job.id}.{job.attempt}") if job.attempt else None
