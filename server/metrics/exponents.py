"""p against the clip fraction, over the trajectories of a few steps."""

from collections import Counter
from collections.abc import Iterator

from sqlalchemy import select, tuple_
from sqlalchemy.orm import Session

from powermean.contracts.exponents import ExponentRow, JobExponents
from server.db.models import TrajectoryStep
from server.db.packing import Columns, last_of_each, unpack_columns
from server.errors import InvalidInputError
from server.jobs.repository import find_job
from server.metrics.trajectories import attempts_by_step

MAX_STEPS = 50  # in one window: the dashboard draws no more


def job_exponents(session: Session, job_id: str, from_step: int, to_step: int) -> JobExponents:
    """How many trajectories of the steps had which p, as their last update saw them.

    Raises NotFoundError if there is no such job, and InvalidInputError for a window of more than MAX_STEPS.
    """
    if to_step - from_step >= MAX_STEPS:
        raise InvalidInputError.at(
            "from_step",
            f"the window has {to_step - from_step + 1} steps",
            f"Ask for at most {MAX_STEPS} at once.",
        )
    find_job(session, job_id)
    attempts = attempts_by_step(session, job_id)
    window = {step: attempt for step, attempt in attempts.items() if from_step <= step <= to_step}
    if not window:
        return JobExponents(steps=(), rows=())
    packed = session.execute(
        select(TrajectoryStep.step, TrajectoryStep.rows).where(
            TrajectoryStep.job_id == job_id,
            tuple_(TrajectoryStep.step, TrajectoryStep.attempt).in_(list(window.items())),
        )
    )
    counted = Counter(
        (step, round(p, 3), round(clip_fraction, 4), 1 if advantage > 0 else -1)
        for step, data in packed
        for p, clip_fraction, advantage in _last_seen(unpack_columns(data))
        if p is not None and clip_fraction is not None and advantage
    )
    rows = tuple(
        ExponentRow(step=step, p=p, clip_fraction=clip_fraction, advantage=sign, trajectories=count)
        for (step, p, clip_fraction, sign), count in sorted(counted.items())
    )
    return JobExponents(steps=tuple(sorted(window)), rows=rows)


def _last_seen(columns: Columns) -> Iterator[tuple[float | None, float | None, float | None]]:
    """p, clip fraction and advantage of each trajectory, in its last update."""
    advantages = columns.get("advantage", [])
    updates = columns.get("updates", [None] * len(advantages))
    return zip(last_of_each(updates, "p"), last_of_each(updates, "clip_fraction"), advantages, strict=True)
