import pytest

from dashboard.stages import SETUP, stages
from powermean.contracts.api import JobState
from powermean.contracts.phases import ACTIVITIES, PREPARING_MODEL, STARTING_ENGINE, in_step
from tests.support.sample_jobs import job


def now(state: JobState, phase: str | None, step: int = 0) -> tuple[str, str]:
    """The present stage and its detail; everything before is done, everything after is ahead."""
    found = stages(job(state, phase=phase, step=step))
    assert found is not None
    places = [stage.place for stage in found.stages]
    at = places.index("now")
    assert places == ["done"] * at + ["now"] + ["ahead"] * (len(places) - at - 1)
    return found.stages[at].name, found.stages[at].detail


@pytest.mark.parametrize(
    ("state", "phase", "name", "detail"),
    [
        (JobState.VALIDATING, "waiting for a node", "validating", "waiting for a node"),
        (JobState.QUEUED, "waiting for a free GPU", "queued", "waiting for a free GPU"),
        (JobState.STARTING, "starting on node-1", "preparing the model", "starting on node-1"),
        (JobState.RUNNING, PREPARING_MODEL, "preparing the model", ""),
        (JobState.RUNNING, STARTING_ENGINE, "starting the engine", ""),
        (JobState.RUNNING, "loading the model", "starting the engine", "loading the model"),
        (JobState.RUNNING, None, "starting the engine", ""),
    ],
)
def test_the_way_to_the_first_step(state: JobState, phase: str | None, name: str, detail: str) -> None:
    assert now(state, phase) == (name, detail)
    assert name in SETUP


@pytest.mark.parametrize("activity", ACTIVITIES)
def test_within_a_step(activity: str) -> None:
    assert now(JobState.RUNNING, in_step(2, 9, activity, "3 of 4"), step=1) == (activity, "3 of 4")


@pytest.mark.parametrize("state", [state for state in JobState if state.final])
def test_an_ended_job_has_no_stages(state: JobState) -> None:
    assert stages(job(state, phase="step 2 of 9: updating")) is None
