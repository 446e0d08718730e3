"""p and ESS by staleness, over the trajectories of a window of steps."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import quantiles

from powermean.contracts.renaming import stored_names
from powermean.contracts.staleness import JobStaleness, StalenessNumbers, StalenessRow
from powermean.contracts.trajectories import staleness
from powermean.means import known_mean
from server.db.packing import Columns, first_of_each, last_of_each
from server.db.scoped import ScopedSession
from server.errors import InvalidInputError
from server.jobs.repository import find_job
from server.metrics.trajectories import attempts_by_step, columns_by_step

MAX_STEPS = 1000  # in one window
_SEEN = ("p", "ess", "ess_at_1", "clip_fraction")
_WHOLE = ("sampling_kl", "importance_sampling_ratio", "applied_importance_sampling_ratio")


def job_staleness(
    session: ScopedSession, job_id: str, steps: int, from_step: int | None, to_step: int | None
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
    by_staleness: dict[int, list[_Seen]] = defaultdict(list)
    for step, columns in columns_by_step(session, job_id, window):
        for one in _seen(columns):
            by_staleness[staleness(step, one.weight_version)].append(one)
    return JobStaleness(
        first_step=min(window),
        last_step=max(window),
        rows=tuple(_row(number, by_staleness[number]) for number in sorted(by_staleness)),
    )


@dataclass(frozen=True)
class _Seen:
    """The needed scalars of a trajectory with tokens."""

    weight_version: int
    length: int
    mixed: bool  # more than one weight version sampled it
    whole: tuple[float | None, ...]  # in the order of _WHOLE
    first: tuple[float | None, ...]  # in its first update, in the order of _SEEN
    last: tuple[float | None, ...]


def _seen(columns: Columns) -> Iterator[_Seen]:
    lengths = columns.get("length", [])
    nothing = [None] * len(lengths)
    updates = columns.get("updates", nothing)
    spans = columns.get("weight_versions", nothing)
    rows = zip(
        columns.get("weight_version", nothing),
        lengths,
        spans["counts"] if isinstance(spans, dict) else nothing,
        zip(*(_stored(columns, name, nothing) for name in _WHOLE), strict=True),
        zip(*(first_of_each(updates, name) for name in _SEEN), strict=True),
        zip(*(last_of_each(updates, name) for name in _SEEN), strict=True),
        strict=True,
    )
    for version, length, versions, whole, first, last in rows:
        if length:
            yield _Seen(version or 0, length, (versions or 0) > 1, whole, first, last)


def _stored(columns: Columns, name: str, nothing: list[None]) -> list[float | None]:
    """A column whose values may be stored under an old name."""
    named = [columns.get(key, nothing) for key in stored_names(name)]
    return [next((value for value in found if value is not None), None) for found in zip(*named, strict=True)]


def _row(number: int, found: Sequence[_Seen]) -> StalenessRow:
    whole = zip(*(one.whole for one in found), strict=True)
    return StalenessRow(
        staleness=number,
        trajectories=len(found),
        mixed=sum(one.mixed for one in found),
        tokens=sum(one.length for one in found),
        **dict(zip(_WHOLE, map(known_mean, whole), strict=True)),
        first=_numbers([one.first for one in found]),
        last=_numbers([one.last for one in found]),
    )


def _numbers(found: Sequence[tuple[float | None, ...]]) -> StalenessNumbers:
    columns = dict(zip(_SEEN, zip(*found, strict=True), strict=True))
    p = sorted(value for value in columns["p"] if value is not None)
    tenths = quantiles(p, n=10, method="inclusive") if len(p) > 1 else [p[0]] * 9 if p else [None] * 9
    return StalenessNumbers(
        defined=len(p),
        p_q10=tenths[0],
        p_median=tenths[4],
        p_q90=tenths[8],
        **{name: known_mean(values) for name, values in columns.items()},
    )
