"""The newest value of every metric, as two tables: by step, and by update within the last step."""

from dataclasses import dataclass

from powermean.contracts.metrics import METRICS, WHOLE_STEP, MetricInfo, MetricsHistory, Point

EVALUATION = tuple(name for name in METRICS if name.startswith("eval/"))


@dataclass(frozen=True)
class StepValue:
    """A metric of a whole step, and the last step that has it."""

    name: str
    info: MetricInfo
    step: int
    value: float | None


@dataclass(frozen=True)
class UpdateValues:
    """A metric by update, in the order of `Latest.updates`; None if missing or not finite."""

    name: str
    info: MetricInfo
    values: tuple[float | None, ...]


@dataclass(frozen=True)
class Latest:
    """The numbers of the last step."""

    steps: tuple[StepValue, ...]
    updates: tuple[int, ...]
    by_update: tuple[UpdateValues, ...]
    update_step: int | None


def _info(name: str) -> MetricInfo:
    return METRICS.get(name) or MetricInfo(level="step", unit="", meaning="")


def latest(*histories: MetricsHistory) -> Latest:
    """The newest values in the histories; series are shown in the order of METRICS."""
    points: dict[str, list[Point]] = {}
    for history in histories:
        for series in history.series:
            points.setdefault(series.name, []).extend(series.points)
    order = [name for name in METRICS if points.get(name)]
    order += sorted(name for name in points if points[name] and name not in METRICS)

    steps = []
    by_name: dict[str, dict[int, float | None]] = {}
    update_points = [p for name in order for p in points[name] if p.update != WHOLE_STEP]
    update_step = max((p.step for p in update_points), default=None)
    for name in order:
        newest = max(points[name], key=lambda p: (p.step, p.update))
        if newest.update == WHOLE_STEP:
            steps.append(StepValue(name, _info(name), newest.step, newest.value))
        else:
            by_name[name] = {p.update: p.value for p in points[name] if p.step == update_step}
    updates = tuple(sorted({p.update for p in update_points if p.step == update_step}))
    return Latest(
        steps=tuple(steps),
        updates=updates,
        by_update=tuple(
            UpdateValues(name, _info(name), tuple(values.get(update) for update in updates))
            for name, values in by_name.items()
        ),
        update_step=update_step,
    )
