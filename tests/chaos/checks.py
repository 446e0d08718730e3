"""What must hold when the faults are over: each check names what is wrong, and finds nothing."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from sqlalchemy import create_engine, select
from sqlalchemy.orm import Session

from powermean.contracts.api import Job, JobState
from server.db.models import Allocation, Attempt, Checkpoint, Metric, Outbox, TrajectoryStep
from tests.chaos.job_faults import PROGRAMS
from tests.support.cluster import Cluster
from tests.support.embedded_service import learned, metric_rows

Rows = dict[tuple[int, int, str], float | None]
SETTLED_S = 60.0  # for processes and slots to be free after the last job's end


@dataclass(frozen=True)
class Record:
    """What a job left: what a run of the same spec must leave bit for bit."""

    rows: Rows
    model: dict[str, str]  # sha256 by file
    checkpoints: dict[int, dict[str, str]]  # by step
    trajectories: tuple[int, ...]  # steps that have them


@dataclass
class Verdict:
    """Everything that was found wrong, by what it is called in the table; all empty: nothing was lost."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, wrong: Iterator[str] | list[str]) -> None:
        self.found.setdefault(kind, []).extend(wrong)

    @property
    def good(self) -> bool:
        return not any(self.found.values())


def record(cluster: Cluster, job_id: str) -> Record:
    client = cluster.client
    with session(cluster) as found:
        query = select(Checkpoint).where(Checkpoint.job_id == job_id).order_by(Checkpoint.attempt)
        checkpoints = {
            one.step: {name: ref["sha256"] for name, ref in one.manifest["files"].items()}
            for one in found.scalars(query)
        }
        texts = select(TrajectoryStep.step).where(TrajectoryStep.job_id == job_id).distinct()
        with_trajectories = tuple(sorted(found.scalars(texts)))
    job = client.get_job(job_id)
    model = {name: ref.sha256 for name, ref in job.result.model.files.items()} if job.result else {}
    return Record(metric_rows(client, job_id), model, checkpoints, with_trajectories)


def session(cluster: Cluster) -> Session:
    return Session(create_engine(cluster.postgres.url))


def jobs_lost(jobs: dict[str, Job]) -> Iterator[str]:
    for job in jobs.values():
        if job.state is not JobState.FINISHED:
            why = job.error.message if job.error else job.phase
            yield f"{job.id} ({job.name}) is {job.state} at step {job.step}, attempt {job.attempt}: {why}"


def rows_lost(job: Job, rows: Rows, undisturbed: Rows) -> Iterator[str]:
    missing, more = set(undisturbed) - set(rows), set(rows) - set(undisturbed)
    if missing:
        yield f"{job.id}: {len(missing)} rows are missing, e.g. {sorted(missing)[:3]}"
    if more:
        yield f"{job.id}: {len(more)} rows too many, e.g. {sorted(more)[:3]}"


def rows_doubled(cluster: Cluster, job: Job) -> Iterator[str]:
    """In the table, not as the API shows it: rows of one key that both count."""
    with session(cluster) as found:
        attempts = found.scalars(select(Attempt).where(Attempt.job_id == job.id)).all()
        starts = {one.number: one.first_step for one in attempts}
        metrics = found.execute(
            select(Metric.step, Metric.update, Metric.name, Metric.attempt).where(Metric.job_id == job.id)
        ).all()
    seen: set[tuple[int, int, str]] = set()
    for step, update, name, attempt in metrics:
        if any(number > attempt and first <= step for number, first in starts.items()):
            continue  # a later attempt has done this step again
        if (step, update, name) in seen:
            yield f"{job.id}: {(step, update, name)} is there twice"
        seen.add((step, update, name))


def other_bits(job: Job, left: Record, undisturbed: Record) -> Iterator[str]:
    mine, theirs = learned(left.rows), learned(undisturbed.rows)
    different = sorted(key for key in mine.keys() & theirs.keys() if mine[key] != theirs[key])
    if different:
        key = different[0]
        yield f"{job.id}: {len(different)} numbers differ, first {key}: {mine[key]}, not {theirs[key]}"
    if left.model != undisturbed.model:
        yield f"{job.id}: another model: {_changed(left.model, undisturbed.model)}"
    # A job that had to leave has another one, of a step at which no undisturbed run saves any.
    if max(left.checkpoints, default=0) < max(undisturbed.checkpoints, default=0):
        yield f"{job.id}: no checkpoint of step {max(undisturbed.checkpoints)}"
    for step in left.checkpoints.keys() & undisturbed.checkpoints.keys():
        if left.checkpoints[step] != undisturbed.checkpoints[step]:
            files = _changed(left.checkpoints[step], undisturbed.checkpoints[step])
            yield f"{job.id}: another checkpoint of step {step}: {files}"
    if left.trajectories != undisturbed.trajectories:
        yield f"{job.id}: trajectories of steps {left.trajectories}, not {undisturbed.trajectories}"


def _changed(mine: dict[str, str], theirs: dict[str, str]) -> list[str]:
    return sorted(name for name in mine.keys() | theirs.keys() if mine.get(name) != theirs.get(name))


def slots_held(cluster: Cluster) -> list[str]:
    with session(cluster) as found:
        held = found.scalars(select(Allocation).where(Allocation.released_at.is_(None))).all()
        return [f"{one.attempt_id} holds {one.node_id}" for one in held]


def messages_owed(cluster: Cluster) -> list[str]:
    with session(cluster) as found:
        owed = found.scalars(select(Outbox).where(Outbox.done_at.is_(None))).all()
        return [f"{one.task}({one.subject})" for one in owed]


def processes_left(cluster: Cluster) -> list[str]:
    """Of attempts and checks, when no job is left."""
    return [
        f"{name}: process {pid}" for name, module in PROGRAMS.items() for pid in sorted(cluster.pids(module))
    ]


def shared_memory_left(jobs: dict[str, Job]) -> list[str]:
    names = sorted(path.name for path in Path("/dev/shm").glob("powermean-*"))
    return [name for name in names if any(job_id in name for job_id in jobs)]
