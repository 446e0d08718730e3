"""The table of states, as laws."""

from powermean.contracts.api import JobState
from server.jobs.states import TRANSITIONS


def reachable(state: JobState) -> set[JobState]:
    found, frontier = {state}, [state]
    while frontier:
        for following in TRANSITIONS[frontier.pop()] - found:
            found.add(following)
            frontier.append(following)
    return found


def test_every_state_has_its_row():
    assert set(TRANSITIONS) == set(JobState)


def test_every_state_can_be_reached_and_left_for_an_end():
    assert reachable(JobState.VALIDATING) == set(JobState)
    for state in JobState:
        assert any(end.final for end in reachable(state))


def test_an_end_is_an_end():
    for state in JobState:
        assert (TRANSITIONS[state] == frozenset()) == state.final


def test_whatever_is_not_over_can_be_cancelled():
    for state in JobState:
        assert state.final or JobState.CANCELLED in TRANSITIONS[state]


def test_only_a_running_job_finishes():
    assert {state for state in JobState if JobState.FINISHED in TRANSITIONS[state]} == {JobState.RUNNING}
