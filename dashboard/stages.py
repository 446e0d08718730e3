"""Where a job is between its submission and its end: an ordered list of stages, one of them now."""

from dataclasses import dataclass
from typing import Literal

from powermean.contracts.api import Job, JobState
from powermean.contracts.phases import ACTIVITIES, PREPARING_MODEL, SAVING_MODEL, SENDING_RECORDS, read_step

SETUP = ("validating", "queued", "preparing the model", "starting the engine", "training")
_WAITING = {JobState.VALIDATING: 0, JobState.QUEUED: 1, JobState.STARTING: 2}
_CLOSING = (SAVING_MODEL, SENDING_RECORDS)


@dataclass(frozen=True)
class Stage:
    """One stage; `detail` says more about the present one, "" if its name says all."""

    name: str
    place: Literal["done", "now", "ahead"]
    detail: str = ""


@dataclass(frozen=True)
class Stages:
    """`heading` names what the stages belong to."""

    heading: str
    stages: tuple[Stage, ...]


def stages(job: Job) -> Stages | None:
    """The way to the first step; from then on the activities of the present step.

    None for a job that has ended or is paused.
    """
    if job.state.final or job.state is JobState.PAUSED:
        return None
    phase = job.phase or ""
    step = read_step(phase) if job.state is JobState.RUNNING else None
    if step is not None:
        names, heading = ACTIVITIES, f"Step {step.step} of {step.steps}"
        return Stages(heading, _ordered(names, names.index(step.activity), step.detail))
    now = _WAITING.get(job.state)
    if now is None:
        now = 2 if phase == PREPARING_MODEL else 4 if phase in _CLOSING else 3
    return Stages("Before the first step" if job.step == 0 else "Going on", _ordered(SETUP, now, phase))


def _ordered(names: tuple[str, ...], now: int, detail: str) -> tuple[Stage, ...]:
    return tuple(
        Stage(
            name,
            "done" if i < now else "ahead" if i > now else "now",
            _more(name, detail) if i == now else "",
        )
        for i, name in enumerate(names)
    )


def _more(name: str, detail: str) -> str:
    return "" if detail.startswith(name) else detail
