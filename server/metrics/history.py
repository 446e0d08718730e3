"""The history of metrics, downsampled in the database without losing extremes."""

from collections.abc import Sequence
from itertools import groupby
from operator import attrgetter
from typing import Any

from sqlalchemy import BigInteger, Row, Select, case, cast, func, select
from sqlalchemy.orm import Session

from powermean.contracts.metrics import MetricsHistory, Point, Series
from server.db.models import Job, Metric
from server.jobs.counting import counts
from server.jobs.repository import no_job
from server.metrics.ingest import UPDATES


def metrics_history(
    session: Session,
    job_id: str,
    names: Sequence[str],
    from_step: int | None,
    to_step: int | None,
    max_points: int,
) -> MetricsHistory:
    """The series `names` (if empty: all) over [from_step, to_step], with at most `max_points` points each.

    A merged point has the place of its last step and update, the mean as its value, and the extremes as low
    and high. A series' last point is never merged, so the stream continues it exactly. The history is
    complete up to `seq`, which is read first; newer points may be included too, and the stream then repeats
    them.

    Raises NotFoundError if there is no such job.
    """
    seq = session.scalar(select(Job.seq).where(Job.id == job_id))
    if seq is None:
        raise no_job(job_id)
    rows = session.execute(_thinned(_chosen(job_id, names, from_step, to_step), max_points)).all()
    found = {name: tuple(map(_point, group)) for name, group in groupby(rows, key=attrgetter("name"))}
    wanted = dict.fromkeys(names or sorted(found))
    return MetricsHistory(
        series=tuple(Series(name=name, points=found.get(name, ())) for name in wanted), seq=seq
    )


def _chosen(job_id: str, names: Sequence[str], from_step: int | None, to_step: int | None) -> Select[Any]:
    """The rows that count, numbered within their series, with the series' length."""
    order = (Metric.step, Metric.update)
    chosen = select(
        Metric.name,
        Metric.step,
        Metric.update,
        Metric.value,
        func.row_number().over(partition_by=Metric.name, order_by=order).label("place"),
        func.count().over(partition_by=Metric.name).label("length"),
    ).where(Metric.job_id == job_id, counts(Metric.job_id, Metric.attempt, Metric.step))
    if names:
        chosen = chosen.where(Metric.name.in_(names))
    if from_step is not None:
        chosen = chosen.where(Metric.step >= from_step)
    if to_step is not None:
        chosen = chosen.where(Metric.step <= to_step)
    return chosen


def _thinned(chosen: Select[Any], max_points: int) -> Select[Any]:
    rows = chosen.subquery()
    before_last = max_points - 1  # the last point gets its own bucket
    bucket = case(
        (rows.c.length <= max_points, rows.c.place),
        (rows.c.place == rows.c.length, before_last),
        else_=(rows.c.place - 1) * before_last // (rows.c.length - 1),
    ).label("bucket")
    bucketed = select(rows, bucket).subquery()
    position = cast(bucketed.c.step, BigInteger) * UPDATES + bucketed.c.update + 1
    return (
        select(
            bucketed.c.name,
            func.max(position).label("position"),
            func.avg(bucketed.c.value).label("value"),
            func.min(bucketed.c.value).label("low"),
            func.max(bucketed.c.value).label("high"),
            func.count().label("merged"),
        )
        .group_by(bucketed.c.name, bucketed.c.bucket)
        .order_by(bucketed.c.name, bucketed.c.bucket)
    )


def _point(row: Row[Any]) -> Point:
    step, update = divmod(row.position, UPDATES)
    if row.merged == 1:
        return Point(step=step, update=update - 1, value=row.value)
    return Point(step=step, update=update - 1, value=row.value, low=row.low, high=row.high)
