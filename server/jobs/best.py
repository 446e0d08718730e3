"""Which checkpoint is the best one, by a metric."""

from collections.abc import Iterable

from sqlalchemy import select
from sqlalchemy.orm import Session

from powermean.contracts.metrics import WHOLE_STEP
from server.db.models import Checkpoint, Job, Metric
from server.jobs.counting import counts, shares
from server.jobs.stored_spec import chosen


def measured(session: Session, job_id: str, metric: str, step: int, after: int) -> float | None:
    """The metric's newest value at or before the step; None if there is none, or it is not finite.

    Values up to step `after`, the previous checkpoint's, say nothing about this one; neither does that of
    step 0, the untrained model's.
    """
    query = select(Metric.value).where(
        Metric.job_id == job_id,
        Metric.name == metric,
        Metric.update == WHOLE_STEP,
        Metric.step > after,
        Metric.step <= step,
        counts(shares(session, job_id), Metric.attempt, Metric.step),
    )
    return session.scalars(query.order_by(Metric.step.desc(), Metric.attempt.desc()).limit(1)).first()


def best_of(job: Job, found: Iterable[Checkpoint]) -> Checkpoint | None:
    """The checkpoint with the best value, of equal ones the earliest; None if none has a value.

    Raises SpecRefusedError: this version can't tell what is best.
    """
    if chosen(job.spec, "checkpoints.best") is None:
        return None
    sign = 1 if chosen(job.spec, "checkpoints.best_is") == "highest" else -1
    valued = [(sign * one.value, -one.step, one.attempt, one) for one in found if one.value is not None]
    return max(valued, key=lambda one: one[:3])[3] if valued else None
