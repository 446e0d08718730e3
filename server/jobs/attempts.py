"""Attempts: claimed once, kept alive by heartbeats, ended by a report or by their silence.

Every function runs in the caller's transaction with the job locked. An attempt's number is its fencing token;
a job's next attempt resumes from the last committed checkpoint. On several nodes (members.py) each claims and
beats for itself; the end of one is the end of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

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
from powermean.contracts.names import RANK_LOST, START_TASK, node_queue
from powermean.contracts.phases import PREPARING_MODEL
from powermean.tokens import AttemptClaims
from server import outbox
from server.db.models import Allocation, Attempt, Job
from server.db.session import database_now
from server.errors import FencedError, ForbiddenError, NotFirstNodeError, NotFoundError
from server.jobs import allocations, members, repository
from server.jobs.checkpoints import check_owner, check_step
from server.jobs.events import check_node, fence, lock_job, record_event
from server.jobs.progress import rewind_progress
from server.jobs.states import change_phase, change_state, record_state
from server.jobs.views import job_spec
from server.settings import Settings

CANCELLED = "the job was cancelled"
REASON_CHARACTERS = 300
LONGEST_PAUSE_S = 300.0


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
        rewind_progress(session, job, job_spec(job).evaluation.every)
    change_state(session, job, JobState.STARTING, f"starting on {', '.join(nodes)}"[:200])


@dataclass(frozen=True)
class Claimed:
    """What the answer to a claim needs."""

    job: Job
    attempt: Attempt
    allocations: Sequence[Allocation]  # of all nodes
    node_id: str
    node_rank: int


def claim(session: Session, settings: Settings, attempt_id: str, node_id: str | None = None) -> Claimed:
    """Make a node's part of the attempt the caller's (None: the first node's): one claim of each succeeds.

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
    joins = attempt.state == "running" and attempt.nodes > 1
    if attempt.number != job.attempt or not (begins or joins):
        raise FencedError(
            f"attempt {attempt_id} ({attempt.state}) cannot be claimed: job {job.id} is {job.state}"
            f" at attempt {job.attempt}",
            remedy="Drop the task: somebody else has it, or it is no longer needed.",
        )
    if attempt.nodes > 1:
        node_rank = members.claim(session, settings, attempt, mine, now)
    else:
        node_rank, attempt.lease_expires_at = 0, now + timedelta(seconds=settings.lease_s)
    outbox.settle(session, attempt_id, now, node_queue(mine))
    if begins:
        attempt.state, attempt.claimed_at = "running", now
        change_state(session, job, JobState.RUNNING, PREPARING_MODEL)
    return Claimed(job, attempt, parts, mine, node_rank)


def refuse(session: Session, claimed: Claimed, why: JobError) -> None:
    """Fail the job of an attempt that was claimed in this transaction: the node never hears of it."""
    now = database_now(session)
    reason = why.message[:REASON_CHARACTERS]
    _end(session, claimed.attempt, "ended", now, outcome="failed", reason=reason, error=why)
    _release(session, claimed.attempt, now, claimed.node_id)
    fail(session, claimed.job, why)


@dataclass(frozen=True)
class Heard:
    """What the answer to a heartbeat needs."""

    order: str
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
        change_phase(session, lock_job(session, attempt.job_id), beat.phase)
    return Heard(attempt.order, nodes)


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
        _end(session, attempt, "ended", now, outcome="cancelled", reason=reason)
        allocations.release(session, attempt.id, now)
        _leave(session, job, attempt)
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
    attempt.order_reason, attempt.ordered_at = reason[:REASON_CHARACTERS], now


def _leave(session: Session, job: Job, attempt: Attempt) -> None:
    """The attempt has left as ordered: the job waits for its next one, or for somebody to resume it."""
    if job.pause_requested:
        why = attempt.order_reason if attempt.order_cause == "paused" else None
        change_state(session, job, JobState.PAUSED, why or "paused")
        return
    job.preemptions += attempt.order_cause == "preempted"
    change_state(session, job, JobState.QUEUED, f"waiting for the scheduler: {attempt.order_reason}"[:200])


def withdraw(session: Session, job: Job) -> None:
    """End an attempt that nobody has claimed; it can't be claimed any more."""
    attempt = _current(session, job)
    if attempt is not None and attempt.state == "starting":
        now = database_now(session)
        _end(session, attempt, "ended", now, outcome="cancelled", reason=CANCELLED)
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
    _conclude(session, settings, job, attempt, report, now)
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
    told = members.named(node, report)
    if attempt.state == "ended":
        _explain(session, job, attempt, told)
    elif attempt.state == "running" and (node.node_rank == 0 or _ends_all(attempt, report)):
        _conclude(session, settings, job, attempt, told, now)
        allocations.release_parts(session, attempt.id, now, members.unclaimed(session, attempt))


def _ends_all(attempt: Attempt, report: Finish) -> bool:
    """Whether the others can't go on without the node: it failed, or left though nobody had ordered it."""
    return report.outcome == "failed" or (report.outcome != "finished" and attempt.order == "continue")


def _explain(session: Session, job: Job, attempt: Attempt, report: Finish) -> None:
    """A node may tell only after the end what caused it: others were quicker to say that they lost its ranks.

    As long as the job has not started again, it ends or waits by the cause.
    """
    told, cause = attempt.error, report.error
    if cause is None or told is None or told["code"] != RANK_LOST or cause.code == RANK_LOST:
        return
    attempt.error, attempt.reason = cause.model_dump(mode="json"), cause.message[:REASON_CHARACTERS]
    state, restarts = JobState(job.state), job_spec(job).max_restarts
    if attempt.number != job.attempt or state not in (JobState.QUEUED, JobState.FAILED):
        return
    if state is JobState.FAILED:
        job.error = (_exhausted(cause, restarts) if report.retryable else cause).model_dump(mode="json")
        record_state(session, job)
    elif report.retryable:
        change_phase(session, job, _restarting(job, restarts, cause))
    else:
        job.ended_by = report.ended_by
        fail(session, job, cause)


def _conclude(
    session: Session, settings: Settings, job: Job, attempt: Attempt, report: Finish, now: datetime
) -> None:
    """End a locked job's running attempt by this report, and decide what happens to the job."""
    if report.result is not None:
        check_step(job, "result.steps", report.result.steps)
        check_owner(job.id, "result.model.files", report.result.model)
    leaves = (attempt.order == "checkpoint_and_exit" or job.pause_requested) and (
        report.outcome in ("checkpointed", "cancelled") or report.retryable
    )
    error = None if leaves else report.error or _unexplained(report, attempt)
    reason = _left(attempt, report) if leaves else _reason(report, error)
    _end(session, attempt, "ended", now, outcome=report.outcome, reason=reason, error=error)
    if report.outcome == "finished" and report.result is not None:
        job.result = report.result.model_dump(mode="json")
        job.step = report.result.steps
        job.ended_by = _ended_by(job, attempt, report)
        change_state(session, job, JobState.FINISHED)
    elif job.cancel_requested:
        change_state(session, job, JobState.CANCELLED)
    elif leaves:
        _leave(session, job, attempt)
    elif report.outcome == "checkpointed":
        change_state(session, job, JobState.QUEUED, "waiting for the scheduler")
    else:
        assert error is not None  # only a result, a checkpoint or an order to cancel needs no error
        if report.outcome == "cancelled" or (report.outcome == "failed" and report.retryable):
            restart_or_fail(session, settings, job, error)
        else:
            job.ended_by = _ended_by(job, attempt, report)
            fail(session, job, error)


def _ended_by(job: Job, attempt: Attempt, report: Finish) -> str | None:
    """The limit that ended the job before its last step."""
    ordered = attempt.order_reason if attempt.order == "finish" and job.step < job.total_steps else None
    return report.ended_by or ordered


def _reason(report: Finish, error: JobError | None) -> str:
    """Why the attempt ended, in words."""
    if error is not None:
        return error.message[:REASON_CHARACTERS]
    if report.outcome == "cancelled":
        return CANCELLED
    if report.outcome == "finished":
        return report.ended_by or "all steps are done"
    return report.reason or "it stopped at a checkpoint, as ordered"


def _left(attempt: Attempt, report: Finish) -> str:
    """Why an attempt left as ordered; how, if it was not by a checkpoint of its own accord."""
    how = report.error.message if report.error else report.reason
    return "; ".join(filter(None, (attempt.order_reason, how)))


def _unexplained(report: Finish, attempt: Attempt) -> JobError | None:
    """The error of an attempt that left neither a model nor a checkpoint and gave no reason.

    An attempt that was ordered to cancel needs none: the order is the reason.
    """
    if report.outcome == "finished" and report.result is None:
        return JobError(
            code="no_steps",
            message="the trainer ended without a trained step",
            remedy="The attempt's log shows what it did instead.",
        )
    if report.outcome == "failed":
        return JobError(
            code="unknown", message="the attempt failed without giving a reason; its log may say more"
        )
    if report.outcome == "cancelled" and attempt.order_cause == "stalled":
        return JobError(
            code="stalled",
            message=attempt.order_reason or "the attempt made no step",
            remedy="The attempt's log shows what it did last.",
        )
    if report.outcome == "cancelled" and attempt.order != "cancel":
        return JobError(code="stopped", message="the attempt was stopped on its node, not by an order")
    return None


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
    _end(session, attempt, "lapsed", now, outcome="lapsed", reason=reason, error=None if leaves else error)
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
        _leave(session, job, attempt)
    elif claimed and error.code != members.GANG_INCOMPLETE and not (gone is not None and gone.blameless):
        restart_or_fail(session, settings, job, error)
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
            remedy="Check whether its node is up and can reach the server.",
        )
    return JobError(
        code="not_claimed",
        message=f"the node did not claim attempt {attempt.number} in time",
        remedy="Check whether the node's worker is running and can reach Redis and the server.",
    )


def restart_or_fail(session: Session, settings: Settings, job: Job, error: JobError) -> None:
    """Requeue a locked job after a temporary failure, with growing pauses, or give up."""
    restarts = job_spec(job).max_restarts
    if job.restarts >= restarts:
        fail(session, job, _exhausted(error, restarts))
        return
    job.restarts += 1
    pause = min(settings.restart_backoff_s * 2 ** (job.restarts - 1), LONGEST_PAUSE_S)
    job.not_before = database_now(session) + timedelta(seconds=pause)
    change_state(session, job, JobState.QUEUED, _restarting(job, restarts, error))


def _restarting(job: Job, restarts: int, error: JobError) -> str:
    return f"restarting ({job.restarts} of {restarts}): {error.message}"[:200]


def _exhausted(error: JobError, restarts: int) -> JobError:
    tail = (
        f"(gave up after {restarts} restarts without a new checkpoint)" if restarts else "(max_restarts is 0)"
    )
    return error.model_copy(update={"message": f"{error.message} {tail}"})


def fail(session: Session, job: Job, error: JobError) -> None:
    """Fail a locked job with the reason."""
    job.error = error.model_dump(mode="json")
    change_state(session, job, JobState.FAILED)


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


def _end(
    session: Session,
    attempt: Attempt,
    state: str,
    now: datetime,
    *,
    outcome: str,
    reason: str,
    error: JobError | None = None,
) -> None:
    attempt.state = state
    attempt.outcome = outcome
    attempt.reason = reason[:REASON_CHARACTERS]
    attempt.ended_at = now
    if error is not None:
        attempt.error = error.model_dump(mode="json")
    outbox.settle(session, attempt.id, now)
