"""Storing reported metrics and trajectories: exactly once, in order, and only from the current attempt.

The fence locks the job's row until the commit, so reports of one job are serialised, whichever server they
reach. A report that changes nothing (a retry after a lost answer) takes no sequence number.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
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
from server.db.session import database_now
from server.errors import InvalidInputError
from server.jobs.batched_writes import LOCK_MS
from server.jobs.events import FencedJob, advance, append_event, fenced_job, fenced_report
from server.jobs.progress import progress
from server.metrics.blocks import is_due, rebuild, summarise

UPDATES = 1 << 20  # more than any step has; history packs (step, update) into one number

# Given to the driver as they are: building them for each report takes longer than running them.
_INSERT = {
    "sqlite": """
        INSERT INTO metrics (job_id, step, attempt, "update", name, value, seq) VALUES (?, ?, ?, ?, ?, ?, ?)
    """,
    "postgresql": """
        INSERT INTO metrics (job_id, step, attempt, "update", name, value, seq)
        SELECT * FROM unnest(
            %(job_id)s::text[], %(step)s::int[], %(attempt)s::int[], %(update)s::int[], %(name)s::text[],
            %(value)s::float8[], %(seq)s::bigint[]
        )
    """,
}
_REPLACE = """
    ON CONFLICT (job_id, step, attempt, "update", name)
    DO UPDATE SET value = excluded.value, seq = excluded.seq WHERE metrics.value
"""
_UPSERT = {
    "sqlite": f"{_INSERT['sqlite']} {_REPLACE} IS NOT excluded.value",
    "postgresql": f"{_INSERT['postgresql']} {_REPLACE} IS DISTINCT FROM excluded.value",
}
_INSERT_REPORT = insert(cast(Table, MetricReport.__table__))

Reported = tuple[FencedJob, Sequence[MetricRow]]


def ingest_metrics(
    session: Session, attempt_id: str, claims: AttemptClaims, rows: Sequence[MetricRow]
) -> None:
    """Store the rows; storing the same rows again has no effect.

    Raises FencedError if the attempt may not write any more, InvalidInputError for a row of a step that is
    not the attempt's or a key that occurs twice in the report.
    """
    job = fenced_report(session, attempt_id, claims)
    _check_rows(job, rows)
    if not rows or not _write(session, _UPSERT, [(job, rows)]):
        return
    _replace_completed_step(session, job, rows)
    _take_note(session, [(job, rows)])


def ingest_new_steps(session: Session, reported: Sequence[Reported]) -> None:
    """As ingest_metrics, of several jobs at once: of each one report that `is_new`."""
    _write(session, _INSERT, reported)
    _take_note(session, reported)


def is_new(job: FencedJob, rows: Sequence[MetricRow]) -> bool:
    """Whether these rows are right, and the job has none of their steps or later ones yet."""
    first = min({row.step for row in rows}, default=-1)
    last = -1 if job.newest_step is None else job.newest_step
    return first > last and first >= job.first_step and _are_right(job, rows)


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
    if not _are_right(job, rows):
        raise InvalidInputError(
            "the report was not stored: some rows are wrong", fields=_wrong_rows(job, rows)[:20]
        )


def _are_right(job: FencedJob, rows: Sequence[MetricRow]) -> bool:
    keys = {(row.step, row.update, row.name) for row in rows}
    return len(keys) == len(rows) and not any(
        update >= UPDATES or _foreign_step(job.total_steps, job.first_step, step)
        for step, update in {(step, update) for step, update, _ in keys}
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


def _write(session: Session, statements: Mapping[str, str], reported: Iterable[Reported]) -> int:
    """Write the rows; returns how many were new or different."""
    connection = session.connection()
    dialect = connection.dialect.name
    found: list[tuple[Any, ...]] = []
    for job, rows in reported:
        key, number, seq = job.job_id, job.number, job.next_seq
        found += [(key, row.step, number, row.update, row.name, row.value, seq) for row in rows]
    given = found if dialect == "sqlite" else _arrays(found)
    return connection.exec_driver_sql(statements[dialect], given).rowcount


def _arrays(rows: Sequence[tuple[Any, ...]]) -> dict[str, str]:
    """The columns as Postgres writes arrays: the driver needs longer for that.

    No id and no name has a character that must be escaped there.
    """
    job_ids, steps, attempts, updates, names, values, seqs = zip(*rows, strict=True)
    columns = {
        "job_id": job_ids,
        "step": map(str, steps),
        "attempt": map(str, attempts),
        "update": map(str, updates),
        "name": [f'"{name}"' for name in names],
        "value": ["NULL" if value is None else repr(value) for value in values],
        "seq": map(str, seqs),
    }
    return {name: f"{{{','.join(column)}}}" for name, column in columns.items()}


def _take_note(session: Session, reported: Sequence[Reported]) -> None:
    """Bring what follows from stored rows up to date: blocks, the jobs' rows, and their events' numbers."""
    advanced, reports, due = [], [], []
    for job, rows in reported:
        steps = {row.step for row in rows}
        first, last = min(steps), max(steps)
        if is_due(job, first, last):
            due.append((f"{job.job_id}.{job.number}", first, last))
        advanced.append((job, progress(job.step, rows)))
        reports.append({"job_id": job.job_id, "seq": job.next_seq, "first_step": first, "last_step": last})
    if len(due) > 1:  # a leader that begins may wait for one of these attempts, and have another
        database_now(session, LOCK_MS)
    for attempt_id, first, last in due:
        summarise(session, session.get_one(Attempt, attempt_id), first, last)
    advance(session, advanced)
    session.connection().execute(_INSERT_REPORT, reports)


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
