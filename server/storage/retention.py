"""How long projects keep what ended jobs stored: their own rules, applied by the leader every few minutes."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from sqlalchemy import false, null, select, update
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from powermean.contracts.replays import ReplayState
from powermean.contracts.storage import Retention
from server.db.inserts import upsert
from server.db.models import (
    Checkpoint,
    Garbage,
    Job,
    LogChunk,
    Metric,
    Project,
    RemovedPart,
    Replay,
    TrajectoryStep,
)
from server.db.session import Database, database_now
from server.jobs import checkpoints
from server.jobs.best import best_of
from server.jobs.counting import counts, shares
from server.jobs.events import lock_job
from server.jobs.repository import checkpoints as kept_checkpoints
from server.jobs.repository import find_job
from server.jobs.stored_spec import SpecRefusedError, chosen

log = logging.getLogger(__name__)

Writing = Callable[[], AbstractContextManager[Session]]
STEPS = 500  # of trajectories, in a transaction
CHUNKS = 1000  # of logs, in a transaction
_FINAL = [state for state in JobState if state.final]


def read_retention(session: Session, project: str) -> Retention:
    """The project's rules."""
    given = session.scalar(select(Project.retention).where(Project.id == project))
    return Retention.model_validate(given or {})


def set_retention(session: Session, project: str, wanted: Retention) -> None:
    """Replace the project's rules."""
    session.get_one(Project, project).retention = wanted.model_dump(mode="json")


def apply_retention(database: Database, writing: Writing) -> Counter[str]:
    """Remove what the projects' rules say, in small transactions; what was removed of how many jobs."""
    with database.read() as session:
        rules = session.execute(
            select(Project.id, Project.retention).where(Project.deleted_at.is_(None)).order_by(Project.id)
        ).all()
    total: Counter[str] = Counter()
    for project, given in rules:
        retention = Retention.model_validate(given or {})
        removed = Counter(_apply(database, writing, project, retention))
        if removed:
            what = ", ".join(f"{part} of {count} jobs" for part, count in sorted(removed.items()))
            log.info("retention in project %s: removed %s", project, what)
        total += removed
    return total


def _apply(database: Database, writing: Writing, project: str, retention: Retention) -> Iterator[str]:
    for part, days in (
        ("texts", retention.texts_days),
        ("tokens", retention.tokens_days),
        ("logs", retention.logs_days),
    ):
        if days is not None:
            for job_id, steps in _due(database, project, part, days):
                _remove_part(writing, job_id, part, steps)
                yield part
    if retention.checkpoints_last is not None:
        for job_id in _with_checkpoints(database, project, retention.checkpoints_last):
            with database.read() as session:
                if not _superfluous(session, job_id, retention):
                    continue
            with writing() as session:
                lock_job(session, job_id)
                for checkpoint in _superfluous(session, job_id, retention):
                    checkpoints.drop(session, checkpoint)
            yield "checkpoints"


def _due(database: Database, project: str, part: str, days: int) -> Sequence[tuple[str, int]]:
    """Ended jobs that still have the part after its time, with their steps.

    Tokens that a replay reads are left for later.
    """
    removed = select(RemovedPart.job_id).where(RemovedPart.job_id == Job.id, RemovedPart.part == part)
    replayed = select(Replay.id).where(
        Replay.job_id == Job.id, Replay.state.in_((ReplayState.WAITING, ReplayState.RUNNING))
    )
    with database.read() as session:
        query = select(Job.id, Job.total_steps).where(
            Job.project_id == project,
            Job.deleted_at.is_(None),
            Job.state.in_(_FINAL),
            Job.finished_at <= database_now(session) - timedelta(days=days),
            ~removed.exists(),
        )
        if part == "tokens":
            query = query.where(~replayed.exists())
        return [(job_id, steps) for job_id, steps in session.execute(query.order_by(Job.id))]


def _remove_part(writing: Writing, job_id: str, part: str, steps: int) -> None:
    """Drop the references batch by batch, and then let the objects go: a crash in between repeats it."""
    if part == "logs":
        while True:
            with writing() as session:
                chunks = session.scalars(
                    select(LogChunk).where(LogChunk.job_id == job_id).limit(CHUNKS)
                ).all()
                for chunk in chunks:
                    session.delete(chunk)
            if len(chunks) < CHUNKS:
                break
    else:
        values: dict[str, Any] = {part: null()} | ({"token_rows": 0} if part == "tokens" else {})
        for first in range(0, steps + 1, STEPS):
            some = TrajectoryStep.step.between(first, first + STEPS - 1)
            with writing() as session:
                session.execute(
                    update(TrajectoryStep).where(TrajectoryStep.job_id == job_id, some).values(values)
                )
    with writing() as session:
        now = database_now(session)
        upsert(session, RemovedPart, [{"job_id": job_id, "part": part, "removed_at": now}])
        upsert(session, Garbage, [{"key": f"jobs/{job_id}/{part}/", "created_at": now}])


def _with_checkpoints(database: Database, project: str, most: int) -> list[str]:
    query = select(Checkpoint.job_id).join(Job, Job.id == Checkpoint.job_id)
    query = query.where(
        Job.project_id == project,
        Job.deleted_at.is_(None),
        Job.state.in_(_FINAL),
        Checkpoint.pinned == false(),
    )
    with database.read() as session:
        found = Counter(session.scalars(query))
    return sorted(job_id for job_id, count in found.items() if count > most)


def _superfluous(session: Session, job_id: str, retention: Retention) -> list[Checkpoint]:
    """The job's checkpoints that are neither pinned, nor among the last, nor the best if that is kept.

    The best by the metric that the job's spec names stays in any case. If this version refuses one of the
    spec's rules, all stay: nobody knows what it would keep.
    """
    rows = kept_checkpoints(session, job_id)
    found = [checkpoint for checkpoint in rows if not checkpoint.pinned]
    job = find_job(session, job_id)
    try:
        chosen(job.spec, "checkpoints")  # all of its rules
        spared = [best_of(job, rows)]
    except SpecRefusedError:
        return []
    spared += [_best(session, job_id, found)] if retention.checkpoints_best else []
    return [checkpoint for checkpoint in found[retention.checkpoints_last :] if checkpoint not in spared]


def _best(session: Session, job_id: str, found: Sequence[Checkpoint]) -> Checkpoint | None:
    """The checkpoint whose newest evaluation before it had the highest held-out reward."""
    query = select(Metric.step, Metric.value).where(
        Metric.job_id == job_id,
        Metric.name == "eval/reward",
        Metric.value.is_not(None),
        counts(shares(session, job_id), Metric.attempt, Metric.step),
    )
    rewards = sorted((step, value) for step, value in session.execute(query) if value is not None)
    best: tuple[float, int] | None = None
    chosen = None
    for checkpoint in found:
        before = [value for step, value in rewards if step <= checkpoint.step]
        if before and (best is None or (before[-1], checkpoint.step) > best):
            best, chosen = (before[-1], checkpoint.step), checkpoint
    return chosen
