"""What becomes of a job whose attempt is over: it ends, or waits for its next attempt or to be resumed.

Every function runs in the caller's transaction with the job locked.
"""

from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from powermean.contracts.attempts import Finish, JobError
from powermean.contracts.names import PORT_TAKEN, RANK_LOST
from server import outbox
from server.db.models import Attempt, Job
from server.db.session import database_now
from server.jobs.checkpoints import check_owner, check_step
from server.jobs.states import change_phase, change_state, record_state
from server.jobs.stored_spec import most_restarts
from server.settings import Settings

CANCELLED = "the job was cancelled"
REASON_CHARACTERS = 300
LONGEST_PAUSE_S = 300.0


def end(
    session: Session,
    attempt: Attempt,
    state: str,
    now: datetime,
    *,
    outcome: str,
    reason: str,
    error: JobError | None = None,
) -> None:
    """Fence the attempt's writes, and tell no node of it any more. What it holds is the caller's."""
    attempt.state = state
    attempt.outcome = outcome
    attempt.reason = reason[:REASON_CHARACTERS]
    attempt.ended_at = now
    if error is not None:
        attempt.error = error.model_dump(mode="json")
    outbox.settle(session, attempt.id, now)


def conclude(
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
    end(session, attempt, "ended", now, outcome=report.outcome, reason=reason, error=error)
    if report.outcome == "finished" and report.result is not None:
        job.result = report.result.model_dump(mode="json")
        job.step = report.result.steps
        job.ended_by = _ended_by(job, attempt, report)
        change_state(session, job, JobState.FINISHED)
    elif job.cancel_requested:
        change_state(session, job, JobState.CANCELLED)
    elif leaves:
        leave(session, job, attempt)
    elif report.outcome == "checkpointed":
        change_state(session, job, JobState.QUEUED, "waiting for the scheduler")
    else:
        assert error is not None  # only a result, a checkpoint or an order to cancel needs no error
        if report.outcome == "cancelled" or (report.outcome == "failed" and report.retryable):
            restart_or_fail(session, settings, job, error)
        else:
            job.ended_by = _ended_by(job, attempt, report)
            fail(session, job, error)


def explain(session: Session, job: Job, attempt: Attempt, report: Finish) -> None:
    """A node may tell only after the end what caused it: others were quicker to say that they lost its ranks.

    As long as the job has not started again, it ends or waits by the cause.
    """
    told, cause = attempt.error, report.error
    if cause is None or told is None or told["code"] != RANK_LOST or cause.code == RANK_LOST:
        return
    attempt.error, attempt.reason = cause.model_dump(mode="json"), cause.message[:REASON_CHARACTERS]
    state, restarts = JobState(job.state), most_restarts(job.spec)
    if attempt.number != job.attempt or state not in (JobState.QUEUED, JobState.FAILED):
        return
    if state is JobState.FAILED:
        job.error = (_exhausted(cause, restarts) if report.retryable else cause).model_dump(mode="json")
        record_state(session, job)
    elif report.retryable:
        change_phase(session, job, _restarting(job, restarts, cause))
    else:
        fail(session, job, cause)


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


def leave(session: Session, job: Job, attempt: Attempt) -> None:
    """The attempt has left as ordered: the job waits for its next one, or for somebody to resume it."""
    if job.pause_requested:
        why = attempt.order_reason if attempt.order_cause == "paused" else None
        change_state(session, job, JobState.PAUSED, why or "paused")
        return
    job.preemptions += attempt.order_cause == "preempted"
    change_state(session, job, JobState.QUEUED, f"waiting for the scheduler: {attempt.order_reason}"[:200])


def restart_or_fail(session: Session, settings: Settings, job: Job, error: JobError) -> None:
    """Requeue a locked job after a temporary failure, with growing pauses, or give up.

    While another job has its node's port, nothing has failed: it waits, and that is no restart.
    """
    if error.code == PORT_TAKEN:
        job.not_before = database_now(session) + timedelta(seconds=LONGEST_PAUSE_S)
        change_state(session, job, JobState.QUEUED, error.message[:200])
        return
    restarts = most_restarts(job.spec)
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
