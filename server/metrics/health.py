"""A job's health, judged by its last steps."""

from collections import defaultdict

from powermean.contracts.health import JobHealth
from powermean.contracts.metrics import MetricsHistory, Point, Series
from powermean.health import health
from powermean.health_rules import NAMES, PEAKS, WINDOW, StepValues
from powermean.means import late_mean
from server.db.scoped import ScopedSession
from server.jobs.repository import find_job
from server.jobs.stored_spec import minibatches
from server.metrics.history import history_fields

MAX_POINTS = 4096  # per series; beyond that points are merged, and a peak is their extreme


def job_health(session: ScopedSession, job_id: str) -> JobHealth:
    """The findings over the newest trained steps.

    Raises NotFoundError if there is no such job.
    """
    job = find_job(session, job_id)
    first = max(1, job.step - WINDOW + 1)
    history = MetricsHistory.model_validate(history_fields(session, job_id, NAMES, first, None, MAX_POINTS))
    by_step = {one.name: _by_step(one, minibatches(job.spec)) for one in history.series}
    return health(by_step, job.algorithm)


def _by_step(series: Series, first_pass: int) -> StepValues:
    """One value per step: the largest for a peak, else the mean over the updates after the first pass, which
    has so many.
    """
    points: dict[int, list[Point]] = defaultdict(list)
    for point in series.points:
        if point.value is not None:
            points[point.step].append(point)
    if series.name in PEAKS:
        return {step: max(_highest(point) for point in found) for step, found in points.items()}
    return {
        step: late_mean([(p.update, p.value) for p in found if p.value is not None], first_pass)
        for step, found in points.items()
    }


def _highest(point: Point) -> float:
    assert point.value is not None
    return point.value if point.high is None else point.high
