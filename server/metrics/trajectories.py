"""The trajectories of a step, with their texts from the artefact store."""

import gzip
import io
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError
from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session, undefer

from powermean.artefacts import ArtefactCorruptError, ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.trajectories import (
    Trajectory,
    TrajectoryPage,
    TrajectoryRow,
    TrajectoryText,
    staleness,
)
from server.db.models import TrajectoryStep
from server.db.packing import Columns, unpack_columns, unpack_rows
from server.db.scoped import ScopedSession
from server.errors import NotFoundError
from server.jobs.counting import counts, shares
from server.jobs.repository import find_job

Sort = Literal["index", "reward", "-reward", "advantage", "-advantage", "p", "-p"]
MAX_TEXTS = 256 * 2**20  # bytes of a step's texts, decompressed


@dataclass(frozen=True)
class StoredPage:
    """A page from the database, before its texts are added."""

    step: int
    rows: tuple[TrajectoryRow, ...]
    total: int
    steps: tuple[int, ...]
    texts: ArtefactRef | None
    token_rows: int = 0  # the tokens of trajectories 0 to token_rows - 1 are recorded


def read_trajectories(
    session: ScopedSession, job_id: str, step: int | None, offset: int, limit: int, sort: Sort
) -> StoredPage:
    """A page of a step's trajectories; default: the newest step. p is the last update's.

    Raises NotFoundError for an unknown job and for a step without trajectories, naming the steps with some.
    """
    steps = tuple(attempts_by_step(session, job_id))
    if step is None and not steps:
        find_job(session, job_id)
        return StoredPage(step=0, rows=(), total=0, steps=(), texts=None)
    chosen = steps[-1] if step is None else step
    head = find_step(session, job_id, chosen, with_rows=True)
    found = sorted_rows(unpack_rows(head.rows), sort)[offset : offset + limit]
    return StoredPage(
        step=chosen,
        rows=tuple(TrajectoryRow.model_validate(row) for row in found),
        total=head.count,
        steps=steps,
        texts=ArtefactRef.model_validate(head.texts) if head.texts else None,
        token_rows=head.token_rows,
    )


def read_trajectory(session: ScopedSession, job_id: str, step: int, index: int) -> StoredPage:
    """One trajectory, as a page that contains only it. Raises NotFoundError, naming what exists."""
    head = find_step(session, job_id, step, with_rows=True)
    found = next((row for row in unpack_rows(head.rows) if row["index"] == index), None)
    if found is None:
        raise no_trajectory(head, index)
    return StoredPage(
        step=step,
        rows=(TrajectoryRow.model_validate(found),),
        total=head.count,
        steps=(step,),
        texts=ArtefactRef.model_validate(head.texts) if head.texts else None,
        token_rows=head.token_rows,
    )


def no_trajectory(head: TrajectoryStep, index: int) -> NotFoundError:
    """The error of a step without a trajectory of that number."""
    there = f"Its trajectories are 0 to {head.count - 1}." if head.count else "It has none."
    return NotFoundError(f"step {head.step} of {head.job_id} has no trajectory {index}", remedy=there)


def find_step(session: Session, job_id: str, step: int, *, with_rows: bool = False) -> TrajectoryStep:
    """The step of the attempt that counts. Raises NotFoundError, naming the steps that exist."""
    find_job(session, job_id)
    attempts = attempts_by_step(session, job_id)
    if step not in attempts:
        steps = tuple(attempts)
        known = f"steps {steps[0]} to {steps[-1]} have some" if steps else "no step has any yet"
        raise NotFoundError(
            f"step {step} of {job_id} has no trajectories", remedy=f"Ask for another: {known}."
        )
    options = [undefer(TrajectoryStep.rows)] if with_rows else []
    return session.get_one(TrajectoryStep, (job_id, step, attempts[step]), options=options)


def join_texts(page: StoredPage, store: ArtefactStore) -> TrajectoryPage:
    """The page with its texts, read outside any transaction.

    Raises ArtefactMissingError or ArtefactCorruptError if the step's texts are not as they were stored.
    """
    texts = _texts(store, page.texts, {row.index for row in page.rows}) if page.texts is not None else {}
    items = []
    for row in page.rows:
        text = texts.get(row.index)
        found = {} if text is None else text.model_dump(include={"prompt", "completion", "answer", "graded"})
        behind = staleness(page.step, row.weight_version) if row.length else None
        has_tokens = row.index < page.token_rows
        items.append(Trajectory(**dict(row), **found, has_tokens=has_tokens, staleness=behind))
    return TrajectoryPage(step=page.step, items=tuple(items), total=page.total, steps=page.steps)


def attempts_by_step(session: Session, job_id: str) -> dict[int, int]:
    """Step -> the attempt whose trajectories count, in order of step."""
    rows = session.execute(
        select(TrajectoryStep.step, func.max(TrajectoryStep.attempt))
        .where(
            TrajectoryStep.job_id == job_id,
            counts(shares(session, job_id), TrajectoryStep.attempt, TrajectoryStep.step),
        )
        .group_by(TrajectoryStep.step)
        .order_by(TrajectoryStep.step)
    )
    return dict(rows.all())


def columns_by_step(
    session: Session, job_id: str, attempts: Mapping[int, int]
) -> Iterator[tuple[int, Columns]]:
    """All trajectories of each of the steps, by columns (packing.py). `attempts`: step -> attempt."""
    query = select(TrajectoryStep.step, TrajectoryStep.rows).where(
        TrajectoryStep.job_id == job_id,
        tuple_(TrajectoryStep.step, TrajectoryStep.attempt).in_(list(attempts.items())),
    )
    for step, packed in session.execute(query):
        yield step, unpack_columns(packed)


def sorted_rows(rows: list[dict[str, Any]], sort: Sort) -> list[dict[str, Any]]:
    """The rows of a step in order of index, or of a number with those that lack it last."""
    name = sort.removeprefix("-")
    descending = name != sort

    def number(row: dict[str, Any]) -> float | None:
        if name != "p":
            return row.get(name)
        updates = row.get("updates")
        return updates[-1].get("p") if updates else None

    numbered = [(number(row), row) for row in rows]
    known = [(value, row) for value, row in numbered if value is not None]
    known.sort(key=lambda pair: -pair[0] if descending else pair[0])  # stable: equal ones stay by index
    return [row for _, row in known] + [row for value, row in numbered if value is None]


def _texts(store: ArtefactStore, ref: ArtefactRef, wanted: set[int]) -> dict[int, TrajectoryText]:
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(store.get_bytes(ref))) as segment:
            data = segment.read(MAX_TEXTS)
        texts = [TrajectoryText.model_validate_json(line) for line in data.splitlines() if line]
    except (OSError, EOFError, zlib.error, ValidationError) as error:
        raise ArtefactCorruptError(
            f"artefact {ref.key} does not contain trajectory texts: {error}"
        ) from error
    return {text.index: text for text in texts if text.index in wanted}
