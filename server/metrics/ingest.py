"""Storing reported metrics and trajectories: exactly once, in order, and only from the current attempt.

The fence locks the job's row until the commit, so reports of one job are serialised, whichever server they
reach. A report that changes nothing (a retry after a lost answer) takes no sequence number.
"""

import json
from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from sqlalchemy import (
    ARRAY,
    Float,
    Integer,
    String,
    bindparam,
    delete,
    func,
    insert,
    literal,
    select,
    tuple_,
)
from sqlalchemy.dialects.postgresql import insert as postgres_insert
from sqlalchemy.orm import Session, undefer

from powermean.contracts.api import FieldError
from powermean.contracts.metrics import MetricRow
from powermean.contracts.trajectories import TrajectoryBatch, TrajectoryRow
from powermean.tokens import AttemptClaims
from server.db.models import MAX_INTEGER, Attempt, Job, Metric, MetricReport, TrajectoryStep
from server.db.packing import pack
from server.errors import InvalidInputError
from server.jobs.events import append_event, fenced_job, take_seq
from server.jobs.progress import note_progress
from server.metrics.blocks import rebuild, summarise

UPDATES = 1 << 20  # more than any step has; history packs (step, update) into one number

_KEY = ("job_id", "step", "attempt", "update", "name")
# Given to the driver as it is: building it for each of a report's rows takes longer than running it.
_SQLITE_UPSERT = """
    INSERT INTO metrics (job_id, step, attempt, "update", name, value, seq) VALUES (?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (job_id, step, attempt, "update", name)
    DO UPDATE SET value = excluded.value, seq = excluded.seq WHERE value IS NOT excluded.value
"""


def ingest_metrics(
    session: Session, attempt_id: str, claims: AttemptClaims, rows: Sequence[MetricRow]
) -> None:
    """Store the rows; storing the same rows again has no effect.

    Raises FencedError if the attempt may not write any more, InvalidInputError for a row of a step that is
    not the attempt's or a key that occurs twice in the report.
    """
    job, attempt = fenced_job(session, attempt_id, claims)
    _check_rows(job, attempt, rows)
    if not rows or not _upsert(session, attempt, job.seq + 1, rows):
        return
    steps = {row.step for row in rows}
    _replace_completed_step(session, attempt, rows)
    summarise(session, attempt, min(steps), max(steps))
    note_progress(job, rows)
    report = {"job_id": job.id, "seq": take_seq(session, job)}
    report |= {"first_step": min(steps), "last_step": max(steps)}
    session.connection().execute(insert(MetricReport.__table__), report)  # type: ignore[arg-type]


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


def _check_rows(job: Job, attempt: Attempt, rows: Sequence[MetricRow]) -> None:
    keys = {(row.step, row.update, row.name) for row in rows}
    if len(keys) == len(rows) and not any(
        update >= UPDATES or _foreign_step(job, attempt, step)
        for step, update in {(step, update) for step, update, _ in keys}
    ):
        return
    raise InvalidInputError(
        "the report was not stored: some rows are wrong", fields=_wrong_rows(job, attempt, rows)[:20]
    )


def _wrong_rows(job: Job, attempt: Attempt, rows: Sequence[MetricRow]) -> list[FieldError]:
    wrong = []
    seen = set()
    for place, row in enumerate(rows):
        if problem := _foreign_step(job, attempt, row.step):
            wrong.append(FieldError(path=f"rows.{place}.step", message=problem))
        if row.update >= UPDATES:
            wrong.append(FieldError(path=f"rows.{place}.update", message=f"not below {UPDATES}"))
        key = (row.step, row.update, row.name)
        if key in seen:
            wrong.append(FieldError(path=f"rows.{place}", message=f"{key} occurs twice in the report"))
        seen.add(key)
    return wrong


def _foreign_step(job: Job, attempt: Attempt, step: int) -> str | None:
    """An attempt writes from its first step on. It may also complete the step before, which may lack an
    evaluation if the earlier attempt ended there."""
    if step > job.total_steps:
        return f"step {step} is after the job's last step {job.total_steps}"
    if step < attempt.first_step - 1:
        return f"step {step} is before the attempt's first step {attempt.first_step}"
    return None


def _upsert(session: Session, attempt: Attempt, seq: int, rows: Sequence[MetricRow]) -> int:
    """Write rows that are new or different; returns how many."""
    if session.get_bind().dialect.name == "postgresql":
        return _upsert_postgres(session, attempt, seq, rows)
    job_id, number = attempt.job_id, attempt.number
    values = [(job_id, row.step, number, row.update, row.name, row.value, seq) for row in rows]
    return session.connection().exec_driver_sql(_SQLITE_UPSERT, values).rowcount


def _upsert_postgres(session: Session, attempt: Attempt, seq: int, rows: Sequence[MetricRow]) -> int:
    """One statement over arrays: several times as fast as one statement per row."""
    columns = func.unnest(
        bindparam("steps", [row.step for row in rows], ARRAY(Integer)),
        bindparam("updates", [row.update for row in rows], ARRAY(Integer)),
        bindparam("names", [row.name for row in rows], ARRAY(String)),
        bindparam("numbers", [row.value for row in rows], ARRAY(Float(53))),
    ).table_valued("step", "update", "name", "value")
    new = columns.render_derived()
    source = select(
        literal(attempt.job_id),
        new.c.step,
        literal(attempt.number),
        new.c.update,
        new.c.name,
        new.c.value,
        literal(seq),
    )
    statement = postgres_insert(Metric).from_select([*_KEY, "value", "seq"], source)
    statement = statement.on_conflict_do_update(
        index_elements=_KEY,
        set_={"value": statement.excluded.value, "seq": statement.excluded.seq},
        where=Metric.value.is_distinct_from(statement.excluded.value),
    )
    # without preserve_rowcount an insert's count is lost
    result = session.connection().execute(statement, execution_options={"preserve_rowcount": True})
    return result.rowcount


def _replace_completed_step(session: Session, attempt: Attempt, rows: Sequence[MetricRow]) -> None:
    """If the attempt completes the step before its first, its numbers replace the earlier attempts'."""
    keys = [(row.update, row.name) for row in rows if row.step < attempt.first_step]
    if not keys:
        return
    step = attempt.first_step - 1
    session.execute(
        delete(Metric).where(
            Metric.job_id == attempt.job_id,
            Metric.attempt < attempt.number,
            Metric.step == step,
            tuple_(Metric.update, Metric.name).in_(keys),
        )
    )
    earlier = select(Attempt).where(
        Attempt.job_id == attempt.job_id, Attempt.number < attempt.number, Attempt.summarised > step
    )
    for one in session.scalars(earlier):
        rebuild(session, one, step, step + 1)


def _check_batch(job: Job, attempt: Attempt, batch: TrajectoryBatch) -> None:
    if problem := _foreign_step(job, attempt, batch.step):
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
