"""The history of metrics, thinned out in the database without losing extremes.

A series longer than asked for is cut into buckets of whole steps, and each update of a step stays a line of
its own: merging the first update, where ratios are 1, with the last would hide what p does. Wide buckets are
put together from blocks (blocks.py), so a long run costs little more than a short one.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, ColumnElement, Integer, Select, case, cast, func, literal_column, select
from sqlalchemy.orm import InstrumentedAttribute, Session

from powermean.contracts.metrics import METRICS
from server.db.models import Job, Metric, MetricBlock
from server.db.scoped import ScopedSession
from server.jobs.counting import Share, counts, shares
from server.jobs.repository import no_job
from server.jobs.stored_spec import updates_per_step
from server.metrics.blocks import SCALE, WIDTHS, scaled_sum
from server.metrics.ingest import UPDATES

_Query = Select[*tuple[Any, ...]]
_BY_STEP = frozenset(name for name, info in METRICS.items() if info.level == "step")
_DIGITS = "%.6g"  # of merged points


def history_fields(
    session: ScopedSession,
    job_id: str,
    names: Sequence[str],
    from_step: int | None,
    to_step: int | None,
    max_points: int,
) -> dict[str, Any]:
    """The fields of a MetricsHistory: `names` (if empty: all) over [from_step, to_step], thinned out.

    A series has at most `max_points` points. A merged point has the place of its last step and update, the
    mean as its value, and the extremes as low and high, to six digits. A series' last point has its own
    value, so the stream continues it exactly. The history is complete up to `seq`, which is read first; newer
    points may be included too, and the stream then repeats them.

    These are no models: a model for each of 26,000 points costs more than the JSON of all.

    Raises NotFoundError if there is no such job.
    """
    job = session.execute(select(Job.seq, Job.spec).where(Job.id == job_id)).one_or_none()
    if job is None:
        raise no_job(job_id)
    found: dict[str, list[dict[str, Any]]] = {}
    steps = _steps(session, job_id, from_step, to_step)
    if steps is not None:
        known = shares(session, job_id)
        for wanted, lines in _kinds(names, job.spec):
            cut = _cut(*steps, lines, max_points)
            merged = _merged(session, job_id, known, cut, wanted)
            found |= _points(merged, _last_values(session, job_id, known, merged))
    chosen = dict.fromkeys(names or sorted(found))
    return {"series": [{"name": name, "points": found.get(name, [])} for name in chosen], "seq": job.seq}


@dataclass(frozen=True)
class _Wanted:
    """Series by name; with `all_but`, all series but these."""

    names: tuple[str, ...]
    all_but: bool = False

    def of(self, column: Any) -> ColumnElement[bool]:
        chosen: ColumnElement[bool] = column.not_in(self.names) if self.all_but else column.in_(self.names)
        return chosen


def _kinds(names: Sequence[str], spec: Mapping[str, Any]) -> Iterator[tuple[_Wanted, int]]:
    """The series of whole steps, and those with a value for each update; how many values a step has."""
    updates = updates_per_step(spec)
    if not names:
        yield _Wanted(tuple(_BY_STEP)), 1
        yield _Wanted(tuple(_BY_STEP), all_but=True), updates
        return
    whole = tuple(name for name in names if name in _BY_STEP)
    others = tuple(name for name in names if name not in _BY_STEP)
    if whole:
        yield _Wanted(whole), 1
    if others:
        yield _Wanted(others), updates


def _steps(
    session: Session, job_id: str, from_step: int | None, to_step: int | None
) -> tuple[int, int] | None:
    """The first and the last step with metrics in the range; None if there is none."""
    step = select(Metric.step).where(Metric.job_id == job_id)
    if from_step is not None:
        step = step.where(Metric.step >= from_step)
    if to_step is not None:
        step = step.where(Metric.step <= to_step)
    first = session.scalar(step.order_by(Metric.step).limit(1))
    last = session.scalar(step.order_by(Metric.step.desc()).limit(1))
    return None if first is None or last is None else (first, last)


@dataclass(frozen=True)
class _Cut:
    """Steps [start, end) in buckets of `width` steps from `origin` on, each bucket with `lines` points.

    If `block` is set, a bucket consists of whole blocks of that width.
    """

    start: int
    end: int
    origin: int
    width: int
    lines: int
    block: int | None

    def bucket(self, step: InstrumentedAttribute[int]) -> ColumnElement[int]:
        """Typed, so that whole numbers are divided: without that, each row takes floating point and FLOOR."""
        origin = literal_column(str(self.origin), Integer)
        return (step - origin) // literal_column(str(self.width), Integer)

    def line(self, update: InstrumentedAttribute[int]) -> ColumnElement[int]:
        """Updates beyond the expected ones share the last line."""
        last = literal_column(str(self.lines - 1), Integer)
        return case((update < 0, literal_column("0", Integer)), (update > last, last), else_=update)


def _cut(first: int, last: int, lines: int, max_points: int) -> _Cut:
    if lines > max_points:
        lines = 1
    most = max_points // lines
    width = -(-(last + 1 - first) // most)
    block = max((block for block in WIDTHS if block <= width), default=None)
    origin = first
    if block is not None:
        origin = first // block * block
        width = -(-(last + 1 - origin) // (most * block)) * block
    return _Cut(first, last + 1, origin, width, lines, block)


class _Merged(NamedTuple):
    """What a point stands for: the rows of a line within a bucket."""

    position: int  # of the last row
    rows: int  # how many
    finite: int  # of them
    total: float | None
    low: float | None
    high: float | None

    def and_also(self, other: "_Merged") -> "_Merged":
        """What both stand for."""
        position, rows = max(self.position, other.position), self.rows + other.rows
        if other.total is None or other.low is None or other.high is None:
            return self._replace(position=position, rows=rows)
        if self.total is None or self.low is None or self.high is None:
            return other._replace(position=position, rows=rows)
        return _Merged(
            position,
            rows,
            self.finite + other.finite,
            self.total + other.total,
            min(self.low, other.low),
            max(self.high, other.high),
        )


def _merged(
    session: Session, job_id: str, known: Sequence[Share], cut: _Cut, wanted: _Wanted
) -> dict[str, list[_Merged]]:
    """Each series' buckets, in order."""
    found: defaultdict[str, dict[int, _Merged]] = defaultdict(dict)
    for share in known:
        for query in _queries(job_id, share, cut, wanted):
            for name, bucket, line, *numbers in session.execute(query):
                series, place, new = found[name], bucket * cut.lines + line, _Merged._make(numbers)
                there = series.get(place)
                series[place] = new if there is None else there.and_also(new)
    return {name: sorted(series.values(), key=attrgetter("position")) for name, series in found.items()}


def _queries(job_id: str, share: Share, cut: _Cut, wanted: _Wanted) -> Iterator[_Query]:
    """An attempt's part of the buckets: from blocks as far as there are any, else from rows."""
    start = max(cut.start, share.start)
    end = cut.end if share.end is None else min(cut.end, share.end)
    if cut.block is not None:
        first = -(-start // cut.block) * cut.block
        last = min(end, share.summarised) // cut.block * cut.block
        if first < last:
            yield _of_rows(job_id, share.attempt, start, first, cut, wanted)
            yield _of_blocks(job_id, share.attempt, first, last, cut, wanted)
            start = last
    yield _of_rows(job_id, share.attempt, start, end, cut, wanted)


def _of_rows(job_id: str, attempt: int, start: int, end: int, cut: _Cut, wanted: _Wanted) -> _Query:
    bucket, line = cut.bucket(Metric.step).label("bucket"), cut.line(Metric.update).label("line")
    return (
        select(
            Metric.name,
            bucket,
            line,
            func.max(_position(Metric.step, Metric.update)),
            func.count(),
            func.count(Metric.value),
            scaled_sum(),
            func.min(Metric.value),
            func.max(Metric.value),
        )
        .where(
            Metric.job_id == job_id,
            Metric.step >= start,
            Metric.step < end,
            Metric.attempt == attempt,
            wanted.of(Metric.name),
        )
        .group_by(Metric.name, bucket, line)
    )


def _of_blocks(job_id: str, attempt: int, start: int, end: int, cut: _Cut, wanted: _Wanted) -> _Query:
    bucket, line = cut.bucket(MetricBlock.start).label("bucket"), cut.line(MetricBlock.update).label("line")
    return (
        select(
            MetricBlock.name,
            bucket,
            line,
            func.max(_position(MetricBlock.last_step, MetricBlock.update)),
            func.sum(MetricBlock.count),
            func.sum(MetricBlock.finite),
            func.sum(MetricBlock.total),
            func.min(MetricBlock.low),
            func.max(MetricBlock.high),
        )
        .where(
            MetricBlock.job_id == job_id,
            MetricBlock.width == cut.block,
            MetricBlock.start >= start,
            MetricBlock.start < end,
            MetricBlock.attempt == attempt,
            wanted.of(MetricBlock.name),
        )
        .group_by(MetricBlock.name, bucket, line)
    )


def _position(step: InstrumentedAttribute[int], update: InstrumentedAttribute[int]) -> ColumnElement[int]:
    """Step and update in one number."""
    return cast(step, BigInteger) * UPDATES + update + 1


def _last_values(
    session: Session, job_id: str, known: Sequence[Share], merged: Mapping[str, Sequence[_Merged]]
) -> dict[tuple[str, int], float | None]:
    """The own values of the series' last points, by name and position, where the last one was merged."""
    last = {name: series[-1].position for name, series in merged.items() if series[-1].rows > 1}
    if not last:
        return {}
    query = select(Metric.name, _position(Metric.step, Metric.update), Metric.value).where(
        Metric.job_id == job_id,
        Metric.step.in_({position // UPDATES for position in last.values()}),
        Metric.name.in_(last),
        counts(known, Metric.attempt, Metric.step),
    )
    found = session.execute(query)
    return {(name, position): value for name, position, value in found if last[name] == position}


def _points(
    merged: Mapping[str, Sequence[_Merged]], last_values: Mapping[tuple[str, int], float | None]
) -> dict[str, list[dict[str, Any]]]:
    """All fields of the points, so that the JSON is the model's."""
    found = {name: [_point(one) for one in series] for name, series in merged.items()}
    for (name, _), value in last_values.items():
        last = found[name][-1]
        last["value"] = value
        if value is not None and last["low"] is not None:  # rounding may have left it out
            last |= {"low": min(last["low"], value), "high": max(last["high"], value)}
    return found


def _point(merged: _Merged) -> dict[str, Any]:
    position, rows, finite, total, low, high = merged
    step, update = position // UPDATES, position % UPDATES - 1
    if rows == 1 or total is None or low is None or high is None:
        return {"step": step, "update": update, "value": low, "low": None, "high": None}
    mean = min(max(total / finite / SCALE, low), high)
    return {
        "step": step,
        "update": update,
        "value": float(_DIGITS % mean),
        "low": float(_DIGITS % low),
        "high": float(_DIGITS % high),
    }
