"""p against the clip fraction over REST, from trajectories in a real database."""

import pytest

from powermean.contracts.exponents import ExponentRow, JobExponents
from tests.support.reports import next_attempt, trajectory
from tests.support.service_driver import error_of


def post_step(attempt, step, *rows):
    answer = attempt.post("trajectories", {"step": step, "rows": rows})
    assert answer.status_code == 204, answer.text


def saw(index, p, clip_fraction, advantage=1.0, earlier=1.0):
    """A trajectory with what its two updates saw."""
    updates = [
        {"update": 0, "p": earlier, "clip_fraction": 0.0},
        {"update": 2, "p": p, "clip_fraction": clip_fraction},
    ]
    return trajectory(index, updates=updates, advantage=advantage)


def exponents_of(service, attempt, from_step, to_step):
    path = f"/v1/jobs/{attempt.claim.job_id}/exponents"
    answer = service.person.get(path, params={"from_step": from_step, "to_step": to_step})
    assert answer.status_code == 200, answer.text
    return JobExponents.model_validate(answer.json())


def row(step, p, clip_fraction, advantage, trajectories):
    return ExponentRow(
        step=step, p=p, clip_fraction=clip_fraction, advantage=advantage, trajectories=trajectories
    )


def test_equal_pairs_are_counted_by_the_sign_of_the_advantage(service):
    attempt = service.running()
    post_step(
        attempt,
        1,
        saw(0, 1.0, 0.0, 0.5),
        saw(1, 1.0, 0.0, 2.0),
        saw(2, 1.0, 0.0, -0.5),
        saw(3, 0.86603, 0.25, -0.5),
        saw(4, 0.86597, 0.25, -0.1),
        saw(5, None, 0.0, 0.0),
        trajectory(6, updates=[]),
    )
    post_step(attempt, 3, saw(0, None, None, 0.0))
    assert exponents_of(service, attempt, 1, 4) == JobExponents(
        steps=(1, 3),
        rows=(row(1, 0.866, 0.25, -1, 2), row(1, 1.0, 0.0, -1, 1), row(1, 1.0, 0.0, 1, 2)),
    )
    assert exponents_of(service, attempt, 4, 9) == JobExponents(steps=(), rows=())


@pytest.mark.slow
def test_only_the_attempt_that_counts_is_looked_at(service):
    first = service.running()
    for step in (1, 2, 3):
        post_step(first, step, saw(0, 0.9, 0.2))
    first.commit(1)
    second = next_attempt(service, first)
    post_step(second, 2, saw(0, 0.8, 0.4))
    found = exponents_of(service, second, 1, 9)
    assert found.steps == (1, 2)
    assert [(each.step, each.p) for each in found.rows] == [(1, 0.9), (2, 0.8)]


@pytest.mark.parametrize(("window", "status"), [((1, 50), 200), ((1, 51), 422)])
def test_a_window_has_at_most_fifty_steps(service, window, status):
    attempt = service.running()
    answer = service.person.get(
        f"/v1/jobs/{attempt.claim.job_id}/exponents", params={"from_step": window[0], "to_step": window[1]}
    )
    assert answer.status_code == status
    if status == 422:
        assert error_of(answer)["fields"][0]["path"] == "from_step"
    nothing = service.person.get("/v1/jobs/job-none/exponents", params={"from_step": 0, "to_step": 1})
    assert nothing.status_code == 404
