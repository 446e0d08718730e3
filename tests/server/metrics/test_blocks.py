"""Blocks say what the rows say, whatever came late, twice, or from a later attempt."""

import pytest
from sqlalchemy import select

from server.db.models import MetricBlock
from server.metrics.blocks import WIDTHS
from tests.support.histories import metrics_history
from tests.support.reports import blocks_made_anew, kept_blocks, next_attempt, post_rows, row

STEPS = 600  # two blocks of the widest


def assert_as_if_made_anew(service):
    with service.database.write() as session:
        assert kept_blocks(session) == blocks_made_anew(session)
        session.rollback()


def run(attempt, first, last):
    post_rows(
        attempt,
        *(row(step, value=step % 7 / 7) for step in range(first, last + 1)),
        *(
            row(step, "loss", step % 11, update=update)
            for step in range(first, last + 1)
            for update in (0, 1)
        ),
    )


@pytest.mark.slow
def test_a_late_row_a_correction_and_a_later_attempt_are_in_them(service):
    first = service.running(training={"steps": STEPS})
    run(first, 1, 300)
    run(first, 301, 560)
    first.commit(543)  # the next attempt starts where a block does
    post_rows(first, row(40, value=9.0), row(41, "late", 1.0), row(543, "eval/reward", 0.3))
    assert_as_if_made_anew(service)
    second = next_attempt(service, first)
    post_rows(second, row(543, "eval/reward", 0.4))  # replaces the first attempt's
    run(second, 544, STEPS)
    assert_as_if_made_anew(service)
    with service.database.read() as session:
        found = select(MetricBlock.attempt).where(
            MetricBlock.name == "eval/reward", MetricBlock.width == WIDTHS[0]
        )
        assert session.scalars(found).all() == [2]


@pytest.mark.slow
def test_a_long_history_from_blocks_has_the_means_and_extremes_of_its_rows(service):
    attempt = service.running(training={"steps": STEPS, "minibatches": 2, "epochs": 1})
    run(attempt, 1, STEPS)
    job_id = attempt.claim.job_id
    with service.database.read() as session:
        rows, thin = (
            {one.name: one.points for one in metrics_history(session, job_id, [], 7, None, most).series}
            for most in (5000, 20)
        )
    for name, points in thin.items():
        assert 5 < len(points) <= 20
        before = dict.fromkeys((-1, 0, 1), 6)
        for point in points[:-1]:
            merged = [
                one.value
                for one in rows[name]
                if one.update == point.update and before[point.update] < one.step <= point.step
            ]
            before[point.update] = point.step
            assert (point.low, point.high) == (
                float(f"{min(merged):.6g}"),
                float(f"{max(merged):.6g}"),
            )
            assert abs(point.value - sum(merged) / len(merged)) < 1e-5


def test_the_largest_numbers_do_not_overflow(service):
    attempt = service.running(training={"steps": STEPS})
    post_rows(attempt, *(row(step, "ratio/max", 1.7e308, update=0) for step in range(1, STEPS + 1)))
    with service.database.read() as session:
        (series,) = metrics_history(session, attempt.claim.job_id, [], None, None, 2).series
    assert {point.value for point in series.points} == {1.7e308}
