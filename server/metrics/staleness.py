"""p and ESS by staleness, over the trajectories of a window of steps."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from statistics import fmean, quantiles
from typing import Any

from sqlalchemy import ColumnElement, Row, Select, func, select, tuple_
from sqlalchemy.orm import Session

from powermean.contracts.renaming import stored_names
from powermean.contracts.staleness import JobStaleness, StalenessNumbers, StalenessRow
from powermean.contracts.trajectories import staleness
from server.db.models import Trajectory
from server.errors import InvalidInputError
from server.jobs.repository import find_job
from server.metrics.trajectories import attempts_by_step, of_last_update

MAX_STEPS = 1000  # in one window
_SEEN = ("p", "ess", "ess_at_1", "clip_fraction")
_WHOLE = ("sampling_kl", "importance_sampling_ratio", "applied_importance_sampling_ratio")


def job_staleness(
    session: Session, job_id: str, steps: int, from_step: int | None, to_step: int | None
) -> JobStaleness:
    """The last `steps` steps up to `to_step` (default: the newest), or those from `from_step` on.

    Raises NotFoundError if there is no such job, and InvalidInputError for a window of more than MAX_STEPS.
    """
    find_job(session, job_id)
    attempts = attempts_by_step(session, job_id)
    last = max(attempts, default=0) if to_step is None else to_step
    first = last - steps + 1 if from_step is None else from_step
    window = {step: attempt for step, attempt in attempts.items() if first <= step <= last}
    if len(window) > MAX_STEPS:
        raise InvalidInputError.at(
            "from_step", f"the window has {len(window)} steps", f"Ask for at most {MAX_STEPS} at once."
        )
    if not window:
        return JobStaleness(first_step=None, last_step=None, rows=())
    by_staleness: dict[int, list[Row[Any]]] = defaultdict(list)
    for row in session.execute(_chosen(session, job_id, window)):
        by_staleness[staleness(row.step, row.weight_version)].append(row)
    return JobStaleness(
        first_step=min(window),
        last_step=max(window),
        rows=tuple(_row(number, by_staleness[number]) for number in sorted(by_staleness)),
    )


def _chosen(session: Session, job_id: str, window: dict[int, int]) -> Select[Any]:
    """The needed scalars of each trajectory with tokens: whole rows would be ten times as much to read."""
    row = Trajectory.row
    seen: list[ColumnElement[Any]] = []
    for name in _SEEN:
        seen.append(row[("updates", 0, name)].as_float().label(f"first_{name}"))
        seen.append(of_last_update(session, name).label(f"last_{name}"))
    return select(
        Trajectory.step,
        row["weight_version"].as_integer().label("weight_version"),
        row["length"].as_integer().label("length"),
        _spans(session).label("spans"),
        *(_stored(name).label(name) for name in _WHOLE),
        *seen,
    ).where(
        Trajectory.job_id == job_id,
        tuple_(Trajectory.step, Trajectory.attempt).in_(list(window.items())),
        row["length"].as_integer() > 0,
    )


def _stored(name: str) -> ColumnElement[Any]:
    return func.coalesce(*(Trajectory.row[key].as_float() for key in stored_names(name)), None)


def _spans(session: Session) -> ColumnElement[Any]:
    """How many weight versions sampled the trajectory; NULL for rows from before this was recorded."""
    if session.get_bind().dialect.name == "sqlite":
        return func.json_array_length(Trajectory.row, "$.weight_versions")
    return func.json_array_length(Trajectory.row["weight_versions"])


def _row(number: int, found: Sequence[Row[Any]]) -> StalenessRow:
    return StalenessRow(
        staleness=number,
        trajectories=len(found),
        mixed=sum((row.spans or 0) > 1 for row in found),
        tokens=sum(row.length for row in found),
        **{name: _mean(getattr(row, name) for row in found) for name in _WHOLE},
        first=_numbers(found, "first"),
        last=_numbers(found, "last"),
    )


def _numbers(found: Sequence[Row[Any]], which: str) -> StalenessNumbers:
    columns = {name: [getattr(row, f"{which}_{name}") for row in found] for name in _SEEN}
    p = sorted(value for value in columns["p"] if value is not None)
    tenths = quantiles(p, n=10, method="inclusive") if len(p) > 1 else [p[0]] * 9 if p else [None] * 9
    return StalenessNumbers(
        defined=len(p),
        p_q10=tenths[0],
        p_median=tenths[4],
        p_q90=tenths[8],
        **{name: _mean(values) for name, values in columns.items()},
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
