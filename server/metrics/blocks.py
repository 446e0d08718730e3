"""Summaries of each series over 16 and over 256 steps, so that a long run is read by thousands of rows.

An attempt's steps below `summarised` are in blocks: those before the last boundary that it has passed. Blocks
are written in the transaction that writes their rows, and again when a row of theirs changes.
"""

from typing import Any

from sqlalchemy import ColumnElement, Integer, Select, case, delete, func, insert, literal_column, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from server.db.models import Attempt, Metric, MetricBlock
from server.jobs.events import FencedJob

WIDTHS = (16, 256)  # steps of a block, ascending; each divides the next
SCALE = 2.0**-32  # of stored sums: the sum of a few of the largest floats is an error on Postgres
_TINY = 2.0**-980  # what is smaller counts as 0 in a sum: scaled it is too small a float, an error there too

_COLUMNS = (
    "job_id", "attempt", "update", "name", "width", "start", "last_step", "count", "finite", "total", "low",
    "high",
)  # fmt: skip


def is_due(attempt: Attempt | FencedJob, first_step: int, last_step: int) -> bool:
    """Whether summarise() has anything to do."""
    done = _done(attempt)
    return first_step < done or _floor(last_step, WIDTHS[0]) > done


def summarise(session: Session, attempt: Attempt, first_step: int, last_step: int) -> None:
    """Bring the attempt's blocks up to date after rows of steps `first_step` to `last_step` were written."""
    done = _done(attempt)
    if first_step < done:
        rebuild(session, attempt, first_step, min(last_step + 1, done))
    passed = _floor(last_step, WIDTHS[0])
    if passed > done:
        for width in WIDTHS:
            _write(session, attempt, width, _floor(done, width), _floor(passed, width))
        attempt.summarised = passed


def rebuild(session: Session, attempt: Attempt, start: int, end: int) -> None:
    """Write the blocks with steps in [start, end) again, as far as the attempt is summarised."""
    for width in WIDTHS:
        first = _floor(start, width)
        last = min(_floor(end - 1, width) + width, _floor(attempt.summarised, width))
        session.execute(
            delete(MetricBlock).where(
                MetricBlock.job_id == attempt.job_id,
                MetricBlock.width == width,
                MetricBlock.start >= first,
                MetricBlock.start < last,
                MetricBlock.attempt == attempt.number,
            )
        )
        _write(session, attempt, width, first, last)


def _done(attempt: Attempt | FencedJob) -> int:
    """The attempt's steps below are in blocks, as far as there can be any."""
    return max(attempt.summarised, _floor(max(attempt.first_step - 1, 0), WIDTHS[0]))


def _write(session: Session, attempt: Attempt, width: int, start: int, end: int) -> None:
    if start >= end:
        return
    source = _of_rows(attempt, start, end) if width == WIDTHS[0] else _of_narrower(attempt, width, start, end)
    session.execute(insert(MetricBlock).from_select(_COLUMNS, source))


def _of_rows(attempt: Attempt, start: int, end: int) -> Select[*tuple[Any, ...]]:
    """The narrowest blocks."""
    block = _start(Metric.step, WIDTHS[0])
    place = (Metric.job_id, Metric.attempt, Metric.update, Metric.name)
    return (
        select(
            *place,
            literal_column(str(WIDTHS[0])),
            block,
            func.max(Metric.step),
            func.count(),
            func.count(Metric.value),
            scaled_sum(),
            func.min(Metric.value),
            func.max(Metric.value),
        )
        .where(
            Metric.job_id == attempt.job_id,
            Metric.step >= start,
            Metric.step < end,
            Metric.attempt == attempt.number,
        )
        .group_by(*place, block)
    )


def _of_narrower(attempt: Attempt, width: int, start: int, end: int) -> Select[*tuple[Any, ...]]:
    """Wider blocks, from those of the width before."""
    block = _start(MetricBlock.start, width)
    place = (MetricBlock.job_id, MetricBlock.attempt, MetricBlock.update, MetricBlock.name)
    return (
        select(
            *place,
            literal_column(str(width)),
            block,
            func.max(MetricBlock.last_step),
            func.sum(MetricBlock.count),
            func.sum(MetricBlock.finite),
            func.sum(MetricBlock.total),
            func.min(MetricBlock.low),
            func.max(MetricBlock.high),
        )
        .where(
            MetricBlock.job_id == attempt.job_id,
            MetricBlock.width == WIDTHS[WIDTHS.index(width) - 1],
            MetricBlock.start >= start,
            MetricBlock.start < end,
            MetricBlock.attempt == attempt.number,
        )
        .group_by(*place, block)
    )


def scaled_sum() -> ColumnElement[float]:
    """The sum of a group's values, times SCALE."""
    return func.sum(case((func.abs(Metric.value) < _TINY, 0.0), else_=Metric.value * SCALE))


def _start(step: InstrumentedAttribute[int], width: int) -> ColumnElement[int]:
    """The first step of the block with this step. The width is literal: Postgres compares it in GROUP BY."""
    steps = literal_column(str(width), Integer)
    return step // steps * steps


def _floor(step: int, width: int) -> int:
    return step // width * width
