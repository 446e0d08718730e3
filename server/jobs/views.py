"""Rows as the API returns them."""

from datetime import datetime
from typing import cast

from powermean.contracts.api import AttemptNode, AttemptView, JobState, JobSummary
from powermean.contracts.api import Job as JobView
from powermean.contracts.attempts import AllocationView, JobError, JobResult, OrderCause
from powermean.contracts.forks import Fork, ForkedFrom
from powermean.contracts.job import JobSpec
from server.db.models import Allocation, Attempt, AttemptMember, Job
from server.jobs.stored_spec import SpecRefusedError, readable


def runnable_spec(job: Job) -> JobSpec:
    """The spec for a node that runs the job. Raises SpecRefusedError also where a part of it is refused."""
    spec, refused = readable(job.spec, JobSpec)
    if spec is None or refused:
        raise SpecRefusedError(refused[0])
    return spec


def job_summary(job: Job) -> JobSummary:
    """A job in a list."""
    return JobSummary(
        id=job.id,
        name=job.name,
        project=job.project_id,
        created_by=job.created_by,
        state=JobState(job.state),
        priority=job.priority,
        algorithm=job.algorithm,
        model=_source(job.spec["model"]),
        step=job.step,
        total_steps=job.total_steps,
        last_reward=job.last_reward,
        last_p=job.last_p,
        last_p_defined=job.last_p_defined,
        last_p_undefined=job.last_p_undefined,
        held_out_before=job.held_out_before,
        held_out=job.held_out,
        attempt=job.attempt,
        cancel_requested=job.cancel_requested,
        pause_requested=job.pause_requested,
        phase=job.phase,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        error=JobError.model_validate(job.error) if job.error else None,
        ended_by=job.ended_by,
    )


def _source(model: dict[str, str | None]) -> str:
    """As ModelSpec.source; a list does not validate every spec."""
    return model.get("name") or model.get("folder") or model.get("from") or ""


def allocation_view(allocation: Allocation) -> AllocationView:
    """Part of an attempt's gang."""
    return AllocationView.model_validate(
        {
            "role": allocation.role,
            "node_id": allocation.node_id,
            "gpu_uuids": allocation.gpu_uuids,
            "engine_id": allocation.engine_id,
        }
    )


def _node_view(member: AttemptMember) -> AttemptNode:
    return AttemptNode(
        node_rank=member.node_rank,
        node_id=member.node_id,
        claimed_at=member.claimed_at,
        ended_at=member.ended_at,
        outcome=member.outcome,
        error=JobError.model_validate(member.error) if member.error else None,
    )


def attempt_view(attempt: Attempt) -> AttemptView:
    """One attempt with its gang."""
    return AttemptView(
        id=attempt.id,
        number=attempt.number,
        state=attempt.state,
        first_step=attempt.first_step,
        allocations=tuple(allocation_view(allocation) for allocation in attempt.allocations),
        nodes=tuple(map(_node_view, attempt.members)) if attempt.nodes > 1 else (),
        created_at=attempt.created_at,
        order_cause=cast(OrderCause | None, attempt.order_cause),
        order_reason=attempt.order_reason,
        ordered_at=attempt.ordered_at,
        ended_at=attempt.ended_at,
        freed_at=_freed_at(attempt),
        outcome=attempt.outcome,
        reason=attempt.reason,
        error=JobError.model_validate(attempt.error) if attempt.error else None,
    )


def _freed_at(attempt: Attempt) -> datetime | None:
    times = [allocation.released_at for allocation in attempt.allocations]
    released = [time for time in times if time is not None]
    return max(released) if released and len(released) == len(times) else None


def job_view(
    job: Job, seconds_left: float | None, forks: tuple[Fork, ...] = (), *, spec: JobSpec | None = None
) -> JobView:
    """A job with its spec (which the caller may have read already), attempts and result."""
    read, refused = (spec, ()) if spec is not None else readable(job.spec, JobSpec)
    return JobView(
        **dict(job_summary(job)),
        spec=read,
        spec_refused=refused,
        forked_from=ForkedFrom(job=job.forked_from, step=job.forked_step) if job.forked_from else None,
        forks=forks,
        result=JobResult.model_validate(job.result) if job.result else None,
        attempts=tuple(attempt_view(attempt) for attempt in job.attempts) if job.attempt else (),
        preemptions=job.preemptions,
        seconds_left=seconds_left,
        seq=job.seq,
    )
