"""Metrics and trajectories are taken in exactly once, from the current attempt alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import select

from server.db.models import Metric, TrajectoryStep
from server.db.packing import unpack_rows
from tests.support.reports import next_attempt, post_rows, row, trajectory
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of


def stored(service: ServiceDriver, attempt: AttemptDriver) -> dict[tuple[int, int, int, str], float | None]:
    """Every stored row of the job by attempt, step, update and name."""
    with service.database.read() as session:
        rows = session.scalars(select(Metric).where(Metric.job_id == attempt.claim.job_id)).all()
    return {(row.attempt, row.step, row.update, row.name): row.value for row in rows}


def seq(service: ServiceDriver, attempt: AttemptDriver) -> int:
    return service.job(attempt.claim.job_id).seq


def test_a_repeated_report_changes_nothing(service):
    attempt = service.running()
    rows = [row(1, value=0.25), row(1, "loss", -0.5, update=0), row(1, "p/mean", None, update=0)]
    post_rows(attempt, *rows)
    before = stored(service, attempt), seq(service, attempt)
    post_rows(attempt, *rows)
    post_rows(attempt)
    assert (stored(service, attempt), seq(service, attempt)) == before
    assert before[0] == {(1, 1, -1, "reward"): 0.25, (1, 1, 0, "loss"): -0.5, (1, 1, 0, "p/mean"): None}


def test_a_corrected_row_is_told_again_alone(service):
    attempt = service.running()
    post_rows(attempt, row(1, value=0.1), row(1, "loss", 1.0))
    first = seq(service, attempt)
    post_rows(attempt, row(1, value=0.2), row(1, "loss", 1.0))
    assert seq(service, attempt) == first + 1
    with service.database.read() as session:
        numbers = dict(session.execute(select(Metric.name, Metric.seq)).all())
    assert numbers == {"reward": first + 1, "loss": first}


@pytest.mark.slow
def test_reports_at_the_same_time_are_stored_once_each(service):
    """Every batch is posted by several at once, as after a lost answer; batches overlap."""
    attempt = service.running()
    start = seq(service, attempt)
    batches = [[row(step, f"m{i}", float(step)) for step in range(i, i + 4)] for i in range(1, 9)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda batch: post_rows(attempt, *batch), batches * 3))
    rows = stored(service, attempt)
    assert len(rows) == 8 * 4
    assert all(value == step for (_, step, _, _), value in rows.items())
    assert seq(service, attempt) == start + len(batches)
    with service.database.read() as session:
        numbers = session.scalars(select(Metric.seq).distinct().order_by(Metric.seq)).all()
    assert numbers == list(range(start + 1, start + 1 + len(batches)))


@pytest.mark.slow
def test_a_fenced_attempt_writes_nothing(service):
    first = service.running()
    post_rows(first, row(1))
    second = next_attempt(service, first)
    before = stored(service, first)
    for what, body in [("metrics", {"rows": [row(2)]}), ("trajectories", {"step": 2, "rows": []})]:
        answer = first.post(what, body)
        assert answer.status_code == 409
        assert error_of(answer)["code"] == "fenced"
    assert stored(service, first) == before
    post_rows(second, row(1))


def test_a_token_is_for_its_own_attempt(service):
    attempt = service.running()
    answer = service.anyone.post(
        "/v1/attempts/job-other.1/metrics",
        json={"rows": []},
        headers={"Authorization": f"Bearer {attempt.token}"},
    )
    assert answer.status_code == 403


@pytest.mark.parametrize(
    ("rows", "path"),
    [
        ([row(1), row(1)], "rows.1"),
        ([row(21)], "rows.0.step"),
        ([row(1), row(1, "loss", update=2**20)], "rows.1.update"),
        ([row(-1)], "rows.0.step"),
        ([row(1, "no spaces")], "rows.0.name"),
    ],
)
def test_wrong_rows_are_named_and_nothing_is_stored(service, rows, path):
    attempt = service.running()
    answer = attempt.post("metrics", {"rows": rows})
    assert answer.status_code == 422
    assert [field["path"] for field in error_of(answer)["fields"]] == [path]
    assert stored(service, attempt) == {}


@pytest.mark.slow
def test_a_job_is_as_far_as_its_last_reward(service):
    attempt = service.running()
    post_rows(attempt, row(0, "eval/reward", 0.3))
    assert service.job(attempt.claim.job_id).step == 0
    post_rows(attempt, row(1, value=0.4), row(2, value=0.6), row(3, "loss", update=0))
    job = service.job(attempt.claim.job_id)
    assert (job.step, job.last_reward) == (2, 0.6)
    post_rows(attempt, row(1, value=0.5))
    job = service.job(attempt.claim.job_id)
    assert (job.step, job.last_reward) == (2, 0.6)


@pytest.mark.slow
def test_a_new_attempt_writes_from_its_first_step_on_and_may_complete_the_one_before(service):
    first = service.running()
    post_rows(first, *(row(step) for step in range(1, 8)), row(5, "eval/reward", 0.1))
    first.commit(5)
    second = next_attempt(service, first)
    assert service.job(first.claim.job_id).attempts[1].first_step == 6
    assert second.post("metrics", {"rows": [row(4)]}).status_code == 422
    post_rows(second, row(5, "eval/reward", 0.2), row(6, value=0.9))
    rows = stored(service, first)
    assert (1, 5, -1, "eval/reward") not in rows
    assert rows[2, 5, -1, "eval/reward"] == 0.2
    assert rows[1, 6, -1, "reward"] == 0.5
    assert rows[2, 6, -1, "reward"] == 0.9


@pytest.mark.slow
def test_trajectories_are_stored_whole_and_once(service):
    attempt = service.running()
    batch = {"step": 1, "rows": [trajectory(0, 1.0, p=0.5), trajectory(1)]}
    for _ in range(2):
        assert attempt.post("trajectories", batch).status_code == 204
    told = [event for event in service.events(attempt.claim.job_id) if event.kind == "trajectories"]
    assert [event.data for event in told] == [{"step": 1, "count": 2}]
    shorter = {"step": 1, "rows": [trajectory(0, 0.5)]}
    assert attempt.post("trajectories", shorter).status_code == 204
    with service.database.read() as session:
        stored = session.scalars(select(TrajectoryStep)).one()
        assert [row["reward"] for row in unpack_rows(stored.rows)] == [0.5]


@pytest.mark.parametrize(
    ("batch", "path"),
    [
        ({"step": 1, "rows": [trajectory(0), trajectory(0)]}, "rows.1.index"),
        ({"step": 21, "rows": []}, "step"),
        ({"step": 1, "rows": [trajectory(2**31)]}, "rows.0.index"),
        (
            {"step": 1, "rows": [], "texts": {"key": "jobs/other/x", "sha256": "0" * 64, "size": 1}},
            "texts.key",
        ),
    ],
)
def test_wrong_trajectories_are_named(service, batch, path):
    answer = service.running().post("trajectories", batch)
    assert answer.status_code == 422
    assert [field["path"] for field in error_of(answer)["fields"]] == [path]
