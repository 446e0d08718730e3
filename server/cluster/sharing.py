"""Who shares the cluster: projects' quotas, priorities, and what running jobs hold and would lose."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from server.db.models import Allocation, Attempt, Checkpoint, Job, PriorityClass, Project
from server.jobs import limits
from server.nodes import RUNNING
from server.placement.state import NodeCapacity, RunningJob, Share

_LEAVES = ("checkpoint_and_exit", "cancel", "finish")  # orders
_PACED = 2  # steps from which on an attempt's pace says something


def shares(session: Session) -> dict[str, Share]:
    """What each project is guaranteed and may have."""
    query = select(
        Project.id,
        Project.gpu_quota,
        Project.gpu_limit,
        Project.cpu_quota,
        Project.cpu_limit,
        Project.share_weight,
    ).where(Project.deleted_at.is_(None))
    return {
        row.id: Share(row.gpu_quota, row.gpu_limit, row.cpu_quota, row.cpu_limit, row.share_weight)
        for row in session.execute(query)
    }


def priorities(session: Session) -> dict[str, int]:
    """The classes' values by name."""
    query = select(PriorityClass.name, PriorityClass.value)
    return {name: value for name, value in session.execute(query)}  # noqa: C416  dict() takes it for a mapping


def running(
    session: Session, values: Mapping[str, int], now: datetime, nodes: Sequence[NodeCapacity] = ()
) -> list[RunningJob]:
    """The jobs with a live attempt, by id, with what that holds on these nodes and elsewhere."""
    usable = {node.id: {gpu.uuid for gpu in node.gpu_info} for node in nodes}
    holds: dict[str, dict[str, tuple[str, ...]]] = defaultdict(dict)
    held = (
        select(Allocation.attempt_id, Allocation.node_id, Allocation.gpu_uuids)
        .join(Attempt, Attempt.id == Allocation.attempt_id)
        .where(Attempt.state.in_(RUNNING), Allocation.released_at.is_(None), Allocation.engine_id.is_(None))
        .order_by(Allocation.id)
    )
    for attempt_id, node_id, gpus in session.execute(held):
        on_node = holds[attempt_id].get(node_id, ())
        holds[attempt_id][node_id] = tuple(dict.fromkeys((*on_node, *gpus)))
    query = (
        select(
            Attempt,
            Job.project_id,
            Job.priority,
            Job.step,
            Job.total_steps,
            Job.limits,
            Job.preemptions,
            Job.queued_at,
            Job.created_at,
        )
        .join(Job, Job.id == Attempt.job_id)
        .where(Attempt.state.in_(RUNNING))
        .order_by(Attempt.id)
    )
    saved = _saved(session)
    found = []
    rows = session.execute(query).all()
    may_run = limits.wall_seconds(session, {row.Attempt.job_id: row.limits for row in rows})
    for attempt, project, priority, step, total, _, preemptions, queued, created in rows:
        began = attempt.claimed_at or attempt.created_at
        paced = _ends_at(step, attempt.first_step, total, began, now)
        at_latest = began.timestamp() + may_run[attempt.job_id] if attempt.job_id in may_run else None
        found.append(
            RunningJob(
                id=attempt.job_id,
                project=project,
                holds=tuple(holds[attempt.id].items()),
                priority=priority,
                value=values.get(priority, 0),
                queued_at=((not preemptions and queued) or created).timestamp(),
                started_at=began.timestamp(),
                saved_at=max(began, saved.get(attempt.job_id, began)).timestamp(),
                ends_at=min(filter(None, (paced, at_latest)), default=None),
                stopping=attempt.order in _LEAVES,
                stops_for=attempt.made_way_for,
                claimed=attempt.state == "running",
                ill=frozenset(
                    gpu
                    for node_id, gpus in holds[attempt.id].items()
                    for gpu in gpus
                    if node_id in usable and gpu not in usable[node_id]
                ),
            )
        )
    return found


def _saved(session: Session) -> dict[str, datetime]:
    """When running jobs last saved a checkpoint."""
    query = (
        select(Checkpoint.job_id, func.max(Checkpoint.created_at))
        .join(Job, Job.id == Checkpoint.job_id)
        .where(Job.state == JobState.RUNNING)
        .group_by(Checkpoint.job_id)
    )
    return {job_id: at for job_id, at in session.execute(query)}  # noqa: C416


def _ends_at(step: int, first_step: int, total: int, began: datetime, now: datetime) -> float | None:
    """From the pace of this attempt's steps; None while it has hardly begun."""
    done = step - first_step
    if done < _PACED:
        return None
    seconds = (now - began).total_seconds()
    return now.timestamp() + seconds / done * max(0, total - step)
