"""p against the clip fraction, over the trajectories of a few steps."""

from collections import Counter
from collections.abc import Iterator

from powermean.contracts.exponents import ExponentRow, JobExponents
from server.db.packing import Columns, last_of_each
from server.db.scoped import ScopedSession
from server.errors import InvalidInputError
from server.jobs.repository import find_job
from server.metrics.trajectories import attempts_by_step, columns_by_step

MAX_STEPS = 50  # in one window: the dashboard draws no more


def job_exponents(session: ScopedSession, job_id: str, from_step: int, to_step: int) -> JobExponents:
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
    counted = Counter(
        (step, round(p, 3), round(clip_fraction, 4), 1 if advantage > 0 else -1)
        for step, columns in columns_by_step(session, job_id, window)
        for p, clip_fraction, advantage in _seen(columns)
        if p is not None and clip_fraction is not None and advantage
    )
    rows = tuple(
        ExponentRow(step=step, p=p, clip_fraction=clip_fraction, advantage=sign, trajectories=count)
        for (step, p, clip_fraction, sign), count in sorted(counted.items())
    )
    return JobExponents(steps=tuple(sorted(window)), rows=rows)


def _seen(columns: Columns) -> Iterator[tuple[float | None, float | None, float]]:
    """Each trajectory's p and clip fraction in its last update, and its advantage."""
    advantages = columns.get("advantage", [])
    updates = columns.get("updates", [None] * len(advantages))
    last = (last_of_each(updates, name) for name in ("p", "clip_fraction"))
    return zip(*last, advantages, strict=True)
