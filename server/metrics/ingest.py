"""Storing reported metrics and trajectories: exactly once, in order, and only from the current attempt.

The fence locks the job's row until the commit, so reports of one job are serialised, whichever server they
reach. A report that changes nothing (a retry after a lost answer) takes no sequence number.
"""

import json
from collections.abc import Sequence
from operator import attrgetter
from typing import Any, cast

from sqlalchemy import Table, delete, insert, select, tuple_
from sqlalchemy.orm import Session, undefer

from powermean.contracts.api import FieldError
from powermean.contracts.metrics import MetricRow
from powermean.contracts.trajectories import TrajectoryBatch, TrajectoryRow
from powermean.tokens import AttemptClaims
from server.db.models import MAX_INTEGER, Attempt, Job, Metric, MetricReport, TrajectoryStep
from server.db.packing import pack
from server.errors import InvalidInputError
from server.jobs.events import FencedJob, advance, append_event, fenced_job, fenced_report
from server.jobs.progress import progress
from server.metrics.blocks import is_due, rebuild, summarise

UPDATES = 1 << 20  # more than any step has; history packs (step, update) into one number

# Given to the driver as they are: building them for each report takes longer than running them.
_SQLITE_UPSERT = """
    INSERT INTO metrics (job_id, step, attempt, "update", name, value, seq) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (job_id, step, attempt, "update", name)
    DO UPDATE SET value = excluded.value, seq = excluded.seq WHERE value IS NOT excluded.value
"""
_POSTGRES_UPSERT = """
    INSERT INTO metrics (job_id, step, attempt, "update", name, value, seq)
    SELECT %(job_id)s, step, %(attempt)s, "update", name, value, %(seq)s
    FROM unnest(%(steps)s::int[], %(updates)s::int[], %(names)s::text[], %(numbers)s::float8[])
        AS reported (step, "update", name, value)
    ON CONFLICT (job_id, step, attempt, "update", name)
    DO UPDATE SET value = excluded.value, seq = excluded.seq
    WHERE metrics.value IS DISTINCT FROM excluded.value
"""
_INSERT_REPORT = insert(cast(Table, MetricReport.__table__))


def ingest_metrics(
    session: Session, attempt_id: str, claims: AttemptClaims, rows: Sequence[MetricRow]
) -> None:
    """Store the rows; storing the same rows again has no effect.

    Raises FencedError if the attempt may not write any more, InvalidInputError for a row of a step that is
    not the attempt's or a key that occurs twice in the report.
    """
    job = fenced_report(session, attempt_id, claims)
    _check_rows(job, rows)
    if not rows or not _upsert(session, job, job.seq + 1, rows):
        return
    steps = {row.step for row in rows}
    first, last = min(steps), max(steps)
    _replace_completed_step(session, job, rows)
    if is_due(job, first, last):
        summarise(session, session.get_one(Attempt, attempt_id), first, last)
    seq = advance(session, job, progress(job.step, rows))
    report = {"job_id": job.job_id, "seq": seq, "first_step": first, "last_step": last}
    session.connection().execute(_INSERT_REPORT, report)


def packed_rows(batch: TrajectoryBatch) -> bytes:
    """The trajectories as they are stored. It takes seconds for many: not in a transaction."""
    return pack([_storable(row) for row in sorted(batch.rows, key=attrgetter("index"))])


def ingest_trajectories(
    session: Session, attempt_id: str, claims: AttemptClaims, batch: TrajectoryBatch, packed: bytes
) -> None:
    """Store all trajectories of a step; repeating the batch has no effect, a different one replaces it.

    Raises FencedError, or InvalidInputError for a step that is not the attempt's, an index that occurs
    twice, or texts that are not the job's own.
    """
    job, attempt = fenced_job(session, attempt_id, claims)
    _check_batch(job, attempt, batch)
    head = {
        "texts": batch.texts.model_dump(mode="json") if batch.texts is not None else None,
        "tokens": batch.tokens.model_dump(mode="json") if batch.tokens is not None else None,
        "token_rows": batch.token_rows,
        "count": len(batch.rows),
        "rows": packed,
    }
    place = {"job_id": attempt.job_id, "step": batch.step, "attempt": attempt.number}
    stored = session.get(TrajectoryStep, tuple(place.values()), options=[undefer(TrajectoryStep.rows)])
    if stored is None:
        session.add(TrajectoryStep(**place, **head))
    elif all(getattr(stored, name) == value for name, value in head.items()):
        return
    else:
        for name, value in head.items():
            setattr(stored, name, value)
    append_event(session, job, "trajectories", {"step": batch.step, "count": len(batch.rows)})


def _check_rows(job: FencedJob, rows: Sequence[MetricRow]) -> None:
    keys = {(row.step, row.update, row.name) for row in rows}
    if len(keys) == len(rows) and not any(
        update >= UPDATES or _foreign_step(job.total_steps, job.first_step, step)
        for step, update in {(step, update) for step, update, _ in keys}
    ):
        return
    raise InvalidInputError(
        "the report was not stored: some rows are wrong", fields=_wrong_rows(job, rows)[:20]
    )


def _wrong_rows(job: FencedJob, rows: Sequence[MetricRow]) -> list[FieldError]:
    wrong = []
    seen = set()
    for place, row in enumerate(rows):
        if problem := _foreign_step(job.total_steps, job.first_step, row.step):
            wrong.append(FieldError(path=f"rows.{place}.step", message=problem))
        if row.update >= UPDATES:
            wrong.append(FieldError(path=f"rows.{place}.update", message=f"not below {UPDATES}"))
        key = (row.step, row.update, row.name)
        if key in seen:
            wrong.append(FieldError(path=f"rows.{place}", message=f"{key} occurs twice in the report"))
        seen.add(key)
    return wrong


def _foreign_step(total_steps: int, first_step: int, step: int) -> str | None:
    """An attempt writes from its first step on. It may also complete the step before, which may lack an
    evaluation if the earlier attempt ended there."""
    if step > total_steps:
        return f"step {step} is after the job's last step {total_steps}"
    if step < first_step - 1:
        return f"step {step} is before the attempt's first step {first_step}"
    return None


def _upsert(session: Session, job: FencedJob, seq: int, rows: Sequence[MetricRow]) -> int:
    """Write rows that are new or different; returns how many."""
    connection = session.connection()
    if connection.dialect.name == "sqlite":
        key, number = job.job_id, job.number
        values = [(key, row.step, number, row.update, row.name, row.value, seq) for row in rows]
        return connection.exec_driver_sql(_SQLITE_UPSERT, values).rowcount
    # One statement over arrays, each as Postgres writes it: the driver needs longer to do that. No name has
    # a character that must be escaped there.
    numbers = ("NULL" if row.value is None else repr(row.value) for row in rows)
    columns = {
        "steps": ",".join([str(row.step) for row in rows]),
        "updates": ",".join([str(row.update) for row in rows]),
        "names": ",".join([f'"{row.name}"' for row in rows]),
        "numbers": ",".join(numbers),
    }
    reported = {name: f"{{{column}}}" for name, column in columns.items()}
    place = {"job_id": job.job_id, "attempt": job.number, "seq": seq}
    return connection.exec_driver_sql(_POSTGRES_UPSERT, reported | place).rowcount


def _replace_completed_step(session: Session, job: FencedJob, rows: Sequence[MetricRow]) -> None:
    """If the attempt completes the step before its first, its numbers replace the earlier attempts'."""
    keys = [(row.update, row.name) for row in rows if row.step < job.first_step]
    if not keys:
        return
    step = job.first_step - 1
    session.execute(
        delete(Metric).where(
            Metric.job_id == job.job_id,
            Metric.attempt < job.number,
            Metric.step == step,
            tuple_(Metric.update, Metric.name).in_(keys),
        )
    )
    earlier = select(Attempt).where(
        Attempt.job_id == job.job_id, Attempt.number < job.number, Attempt.summarised > step
    )
    for one in session.scalars(earlier):
        rebuild(session, one, step, step + 1)


def _check_batch(job: Job, attempt: Attempt, batch: TrajectoryBatch) -> None:
    if problem := _foreign_step(job.total_steps, attempt.first_step, batch.step):
        raise InvalidInputError.at("step", problem)
    seen: set[int] = set()
    for place, row in enumerate(batch.rows):
        if row.index > MAX_INTEGER:
            raise InvalidInputError.at(f"rows.{place}.index", f"above {MAX_INTEGER}")
        if row.index in seen:
            raise InvalidInputError.at(f"rows.{place}.index", f"index {row.index} occurs twice in the batch")
        seen.add(row.index)
    own = f"jobs/{attempt.job_id}/"
    for name, ref in (("texts", batch.texts), ("tokens", batch.tokens)):
        if ref is not None and not ref.key.startswith(own):
            raise InvalidInputError.at(
                f"{name}.key", "this artefact is not the job's own", f"Store {name} below {own}."
            )
    if batch.token_rows > (len(batch.rows) if batch.tokens is not None else 0):
        raise InvalidInputError.at("token_rows", "more than the trajectories with recorded tokens")


def _storable(row: TrajectoryRow) -> dict[str, Any]:
    """The row as JSON, NUL replaced: Postgres can't store it, and a grader's error may quote anything."""
    text = row.model_dump_json()
    found: dict[str, Any] = json.loads(text)
    return _without_nul(found) if "\\u0000" in text else found


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, list):
        return [_without_nul(each) for each in value]
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(each) for key, each in value.items()}
    return value
