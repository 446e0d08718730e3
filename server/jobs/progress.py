"""What the list of jobs shows of a job's numbers: the newest ones, kept on its row."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from powermean.contracts.metrics import WHOLE_STEP, MetricRow
from server.db.models import Job, Metric
from server.jobs.counting import counts, shares

_P = ("p/last_pass/mean", "p/mean")
_P_OF = ("p/last_pass/defined", "p/last_pass/undefined")
_SHOWN = frozenset({"reward", "eval/reward", *_P, *_P_OF})
_LOOK_BACK = 50  # steps in which a p is looked for: there is none where all rewards are equal


def progress(step: int, rows: Sequence[MetricRow]) -> dict[str, Any]:
    """What changes on the row of a job at `step` by rows that were just reported. The mean reward marks a
    step as done."""
    rows = [row for row in rows if row.name in _SHOWN]
    new: dict[str, Any] = {}
    if (reward := _newest(rows, "reward")) and reward.step >= step:
        new |= {"step": reward.step, "last_reward": reward.value}
        step = reward.step
    p = _newest(rows, _P[0]) or _newest(rows, _P[1])
    if p and p.step >= step:
        new |= _shown_p(rows, p)
    if held_out := _newest(rows, "eval/reward"):
        new["held_out"] = held_out.value
    if untrained := _newest([row for row in rows if row.step == 0], "eval/reward"):
        new["held_out_before"] = untrained.value
    return new


def rewind_progress(session: Session, job: Job, every: int) -> None:
    """Show what counts once a new attempt starts after `job.step`; `every`: steps between evaluations."""
    last = job.step
    evaluated = {0, last, last - last % every if every else 0}
    rows = _counted(session, job, ("eval/reward",), Metric.step.in_(evaluated))
    rows += _counted(session, job, ("reward",), Metric.step == last)
    recent = _counted(session, job, (*_P, *_P_OF), Metric.step > last - _LOOK_BACK)
    job.last_reward = job.held_out = job.held_out_before = None
    job.last_p = job.last_p_defined = job.last_p_undefined = None
    new = progress(job.step, rows)
    if p := _newest(recent, _P[0]) or _newest(recent, _P[1]):
        new |= _shown_p(recent, p)
    for name, value in new.items():
        setattr(job, name, value)


def _counted(session: Session, job: Job, names: Sequence[str], where: ColumnElement[bool]) -> list[MetricRow]:
    found = shares(session, job.id)
    query = select(Metric.step, Metric.update, Metric.name, Metric.value).where(
        Metric.job_id == job.id,
        Metric.step <= job.step,
        where,
        Metric.name.in_(names),
        counts(found, Metric.attempt, Metric.step),
    )
    return [MetricRow(step=s, update=u, name=n, value=v) for s, u, n, v in session.execute(query)]


def _shown_p(rows: Sequence[MetricRow], p: MetricRow) -> dict[str, Any]:
    """The mean p, and how many trajectories of its step have one and have none, where that is recorded."""
    of = {row.name: row.value for row in rows if row.step == p.step} if p.update == WHOLE_STEP else {}
    defined, undefined = (of.get(name) for name in _P_OF)
    return {
        "last_p": p.value,
        "last_p_defined": None if defined is None else int(defined),
        "last_p_undefined": None if undefined is None else int(undefined),
    }


def _newest(rows: Sequence[MetricRow], name: str) -> MetricRow | None:
    return max((row for row in rows if row.name == name), key=_when, default=None)


def _when(row: MetricRow) -> tuple[int, int]:
    return row.step, row.update
