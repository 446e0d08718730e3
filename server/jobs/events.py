"""The order of what happens to a job: its lock, its sequence numbers, and the fence around its writes.

Every write of a job's metrics, events or results goes through `next_seq`, which locks the job's row until the
commit. Numbers become visible in order, so a reader that has seen `seq` n has seen everything before it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, cast

from sqlalchemy import Row, Table, bindparam, func, select, update
from sqlalchemy.orm import Session

from powermean.tokens import AttemptClaims
from server.db.inserts import insert_row, insert_rows
from server.db.models import Attempt, Job, JobEvent, Metric
from server.db.session import changes, database_now
from server.errors import FencedError, ForbiddenError, NotFoundError
from server.jobs.repository import no_job

_LOCKED = (
    select(Job)
    .where(Job.id == bindparam("job_id"))
    .with_for_update()
    .execution_options(populate_existing=True)
)
EventKind = Literal["state", "rewind", "trajectories", "checkpoint"]


def lock_job(session: Session, job_id: str) -> Job:
    """The job, freshly read and locked until the end of the transaction.

    Raises:
        NotFoundError: there is no such job.
    """
    job = session.execute(_LOCKED, {"job_id": job_id}).scalar_one_or_none()
    if job is None:
        raise no_job(job_id)
    return job


def next_seq(session: Session, job_id: str) -> int:
    """Lock the job and take its next sequence number; the job's followers are woken after the commit.

    Raises:
        NotFoundError: there is no such job.
    """
    job = lock_job(session, job_id)
    take_seq(session, job)
    session.flush()
    return job.seq


def take_seq(session: Session, job: Job) -> int:
    """The next sequence number of a locked job."""
    job.seq += 1
    changes(session).jobs.add(job.id)
    return job.seq


def record_event(session: Session, job_id: str, kind: EventKind, data: dict[str, Any]) -> None:
    """Append an event to the job's stream (contracts.api.Event)."""
    append_event(session, lock_job(session, job_id), kind, data)


def append_event(
    session: Session, job: Job, kind: EventKind, data: dict[str, Any], now: datetime | None = None
) -> None:
    """Append an event to the stream of a locked job, of this moment unless the caller knows it."""
    row = _event_row(job, take_seq(session, job), kind, data, now or database_now(session))
    insert_row(session, JobEvent, row)


def first_events(session: Session, begun: Iterable[tuple[Job, dict[str, Any]]]) -> None:
    """Begin the streams of jobs that this transaction inserted with `seq` 1."""
    _insert_states(session, [_event_row(job, job.seq, "state", data, job.created_at) for job, data in begun])


def state_events(session: Session, moved: Iterable[tuple[Job, dict[str, Any]]], now: datetime) -> None:
    """Tell the followers of jobs which this transaction has moved, and whose `seq` it has taken."""
    _insert_states(session, [_event_row(job, job.seq, "state", data, now) for job, data in moved])


def _insert_states(session: Session, rows: Sequence[Mapping[str, Any]]) -> None:
    insert_rows(session, JobEvent, rows)
    changes(session).jobs.update(row["job_id"] for row in rows)


def _event_row(job: Job, seq: int, kind: EventKind, data: dict[str, Any], now: datetime) -> dict[str, Any]:
    return {"job_id": job.id, "seq": seq, "kind": kind, "data": data, "created_at": now}


def check_node(claims: AttemptClaims, node_rank: int) -> None:
    """Raises ForbiddenError where a node speaks for another one of its attempt."""
    if node_rank != claims.node_rank:
        raise ForbiddenError(
            f"the token belongs to node {claims.node_rank} of attempt {claims.attempt_id}, not to {node_rank}"
        )


def fence(session: Session, attempt_id: str, claims: AttemptClaims) -> Attempt:
    """fenced_job() for those who need only the attempt."""
    return fenced_job(session, attempt_id, claims)[1]


def fenced_job(session: Session, attempt_id: str, claims: AttemptClaims) -> tuple[Job, Attempt]:
    """Allow or refuse a write by `attempt_id`; if allowed, the job is locked until the commit.

    Only the job's current attempt may write, from its claim to its end. An expired lease alone does not
    matter: the scheduler decides when an attempt is given up, and from then on its writes are refused here.

    Raises:
        ForbiddenError: the token belongs to another attempt.
        FencedError: the attempt has ended, lapsed, was not claimed, or is not the job's current one.
    """
    _check_token(attempt_id, claims)
    try:
        job = lock_job(session, claims.job_id)
    except NotFoundError as error:
        raise _deleted(attempt_id) from error
    attempt = session.get(Attempt, attempt_id, populate_existing=True)
    if attempt is None or attempt.number != job.attempt or attempt.state != "running":
        raise _fenced(attempt_id, "unknown" if attempt is None else attempt.state, job.attempt)
    return job, attempt


@dataclass(frozen=True)
class FencedJob:
    """What a report of metrics needs to know of the locked job and its current attempt."""

    job_id: str
    seq: int
    step: int
    total_steps: int
    number: int
    first_step: int
    summarised: int
    newest_step: int | None  # of those with metrics, of any attempt

    @property
    def next_seq(self) -> int:
        return self.seq + 1


_Row = Row[*tuple[Any, ...]]
_jobs, _attempts, _metrics = Job.__table__.c, Attempt.__table__.c, Metric.__table__.c
_STATE = select(_jobs.id, _jobs.attempt, _jobs.seq, _jobs.step, _jobs.total_steps)
_LOCK = _STATE.where(_jobs.id == bindparam("job_id")).with_for_update()
_LOCK_FREE = _STATE.where(_jobs.id.in_(bindparam("job_ids", expanding=True))).with_for_update(
    skip_locked=True
)
# A statement of its own: joined, Postgres would show the attempt as it was before the wait for the lock.
_ATTEMPT = select(
    _attempts.job_id,
    _attempts.state,
    _attempts.number,
    _attempts.first_step,
    _attempts.summarised,
    select(func.max(_metrics.step))
    .where(_metrics.job_id == _attempts.job_id)
    .scalar_subquery()
    .label("newest"),
)
_CURRENT = _ATTEMPT.where(_attempts.id == bindparam("attempt_id"))
_CURRENT_ONES = _ATTEMPT.where(_attempts.id.in_(bindparam("attempt_ids", expanding=True)))
_ADVANCE = update(cast(Table, Job.__table__)).where(_jobs.id == bindparam("locked_id"))


def fenced_report(session: Session, attempt_id: str, claims: AttemptClaims) -> FencedJob:
    """As fenced_job(), for what comes most often: it reads a few columns, without the ORM's work for all."""
    _check_token(attempt_id, claims)
    connection = session.connection()
    job = connection.execute(_LOCK, {"job_id": claims.job_id}).one_or_none()
    if job is None:
        raise _deleted(attempt_id)
    attempt = connection.execute(_CURRENT, {"attempt_id": attempt_id}).one_or_none()
    if attempt is None or not _may_write(job, attempt):
        raise _fenced(attempt_id, "unknown" if attempt is None else attempt.state, job.attempt)
    return _fenced_job(job, attempt)


def fenced_reports(session: Session, attempts: Mapping[str, str]) -> dict[str, FencedJob]:
    """fenced_report() for an attempt of each job (job id -> attempt id), without those that may not write.

    A job that somebody else has locked is left out, too: this waits for nobody.
    """
    connection = session.connection()
    jobs = connection.execute(_LOCK_FREE, {"job_ids": [*attempts]}).all()
    if not jobs:
        return {}
    current = connection.execute(_CURRENT_ONES, {"attempt_ids": [attempts[job.id] for job in jobs]})
    found = {attempt.job_id: attempt for attempt in current}
    return {
        job.id: _fenced_job(job, attempt)
        for job in jobs
        if (attempt := found.get(job.id)) is not None and _may_write(job, attempt)
    }


def _may_write(job: _Row, attempt: _Row) -> bool:
    return bool(attempt.number == job.attempt and attempt.state == "running")


def _fenced_job(job: _Row, attempt: _Row) -> FencedJob:
    return FencedJob(
        job_id=job.id,
        seq=job.seq,
        step=job.step,
        total_steps=job.total_steps,
        number=attempt.number,
        first_step=attempt.first_step,
        summarised=attempt.summarised,
        newest_step=attempt.newest,
    )


def advance(session: Session, jobs: Sequence[tuple[FencedJob, Mapping[str, Any]]]) -> None:
    """Take the locked jobs' next sequence numbers, and set what is new in other columns of their rows."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for job, new in jobs:
        alike.setdefault(tuple(new), []).append({"locked_id": job.job_id, "seq": job.next_seq, **new})
    for rows in alike.values():
        session.connection().execute(_ADVANCE, rows)
    changes(session).jobs.update(job.job_id for job, _ in jobs)


def _check_token(attempt_id: str, claims: AttemptClaims) -> None:
    if attempt_id != claims.attempt_id:
        raise ForbiddenError(f"the token does not belong to attempt {attempt_id}")


def _deleted(attempt_id: str) -> FencedError:
    return FencedError(
        f"attempt {attempt_id} may not write any more: the job was deleted",
        remedy="Stop the attempt's processes.",
    )


def _fenced(attempt_id: str, state: str, current: int) -> FencedError:
    return FencedError(
        f"attempt {attempt_id} ({state}) may not write any more: the job is at attempt {current}",
        remedy="Stop the attempt's processes; the job resumes from the last committed checkpoint.",
    )
