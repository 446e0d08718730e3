"""p and ESS by staleness over REST, from trajectories in a real database."""

import pytest

from powermean.contracts.staleness import JobStaleness
from tests.support.reports import next_attempt, trajectory
from tests.support.service_driver import error_of


def post_step(attempt, step, *rows):
    answer = attempt.post("trajectories", {"step": step, "rows": rows})
    assert answer.status_code == 204, answer.text


def made_by(index, *versions, first=None, last=1.0, **more):
    """A trajectory whose tokens these weights made, one each, with what its two updates saw."""
    bounds = {version: [i for i, made in enumerate(versions) if made == version] for version in versions}
    spans = [{"version": v, "start": places[0], "end": places[-1] + 1} for v, places in bounds.items()]
    seen = [
        {"update": 0, "p": first, "p_reason": None if first is not None else "equal ratios", "ess": 1.0},
        {"update": 2, "p": last, "ess": 0.9, "ess_at_1": 0.8, "clip_fraction": 0.25},
    ]
    given = {"length": len(versions), "weight_version": min(versions, default=0), "weight_versions": spans}
    return trajectory(index, updates=seen, **(given | more))


def staleness_of(service, attempt, **query):
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/staleness", params=query)
    assert answer.status_code == 200, answer.text
    return JobStaleness.model_validate(answer.json())


@pytest.mark.slow
def test_trajectories_are_told_apart_by_the_oldest_weights_that_made_them(service):
    attempt = service.running()
    ratios = {"importance_sampling_ratio": 1.5, "applied_importance_sampling_ratio": 1.25}
    post_step(
        attempt,
        5,
        made_by(0, 4, 4, 4, last=0.9, sampling_kl=0.1, **ratios),
        made_by(1, 4, last=0.7, sampling_kl=0.3),
        made_by(2, 2, 3, first=0.5, last=0.4),
        made_by(3, 3, 4, 4, last=None),
        made_by(4),  # without tokens no weights made it
    )
    found = staleness_of(service, attempt)
    assert (found.first_step, found.last_step, found.stale) == (5, 5, True)
    assert [(r.staleness, r.trajectories, r.mixed, r.tokens) for r in found.rows] == [
        (0, 2, 0, 4),
        (1, 1, 1, 3),
        (2, 1, 1, 2),
    ]
    fresh, one, two = found.rows
    assert fresh.sampling_kl == pytest.approx(0.2)
    assert (fresh.importance_sampling_ratio, fresh.applied_importance_sampling_ratio) == (1.5, 1.25)
    assert (fresh.last.defined, fresh.last.p, fresh.last.p_median) == (
        2,
        pytest.approx(0.8),
        pytest.approx(0.8),
    )
    assert (fresh.last.p_q10, fresh.last.p_q90) == (pytest.approx(0.72), pytest.approx(0.88))
    assert (fresh.last.ess, fresh.last.ess_at_1, fresh.last.clip_fraction) == (0.9, 0.8, 0.25)
    assert (fresh.first.defined, fresh.first.p, fresh.first.ess) == (0, None, 1.0)
    assert (one.last.defined, one.last.p, one.last.ess) == (0, None, 0.9)
    assert (two.first.p, two.last.p, two.last.p_q10, two.sampling_kl) == (0.5, 0.4, 0.4, None)


@pytest.mark.slow
def test_the_window_is_the_newest_steps_or_a_range(service):
    attempt = service.running()
    for step in range(1, 9):
        post_step(attempt, step, made_by(0, step - 1), made_by(1, max(0, step - 3)))

    def rows(**query):
        return [(row.staleness, row.trajectories) for row in staleness_of(service, attempt, **query).rows]

    assert rows(steps=3) == [(0, 3), (2, 3)]
    assert rows(steps=2, to_step=2) == [(0, 3), (1, 1)]
    assert rows(from_step=2, to_step=3) == [(0, 2), (1, 1), (2, 1)]
    assert staleness_of(service, attempt, from_step=7).first_step == 7
    nothing = JobStaleness(first_step=None, last_step=None, rows=())
    assert staleness_of(service, attempt, from_step=9) == nothing


@pytest.mark.slow
def test_only_the_attempt_that_counts_is_looked_at(service):
    first = service.running()
    for step in range(1, 5):
        post_step(first, step, made_by(0, 0))
    first.commit(2)
    second = next_attempt(service, first)
    post_step(second, 3, made_by(0, 2))
    found = staleness_of(service, second)
    assert (found.first_step, found.last_step) == (1, 3)
    assert [(row.staleness, row.trajectories) for row in found.rows] == [(0, 2), (1, 1)]


def test_each_trajectory_says_its_staleness(service):
    attempt = service.running()
    post_step(attempt, 5, made_by(0, 4), made_by(1, 2, 3), made_by(2))
    path = f"/v1/jobs/{attempt.claim.job_id}/trajectories"
    assert [one["staleness"] for one in service.person.get(path).json()["items"]] == [0, 2, None]
    assert service.person.get(f"{path}/5/1").json()["staleness"] == 2


@pytest.mark.slow
def test_what_cannot_be_answered(service, monkeypatch):
    attempt = service.running()
    assert staleness_of(service, attempt).rows == ()
    assert service.person.get("/v1/jobs/job-none/staleness").status_code == 404
    assert service.anyone.get(f"/v1/jobs/{attempt.claim.job_id}/staleness").status_code == 401
    for step in (1, 2, 3):
        post_step(attempt, step, made_by(0, 0))
    monkeypatch.setattr("server.metrics.staleness.MAX_STEPS", 2)
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/staleness", params={"from_step": 0})
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "from_step"
