"""The rows that count, thinned out without losing an extreme."""

from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select

from server.db.models import Attempt, Job, Metric
from server.metrics.blocks import summarise
from tests.support.histories import metrics_history
from tests.support.people import add_person
from tests.support.reports import next_attempt, post_rows, row
from tests.support.service_driver import error_of


def get(service, attempt, **query):
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/metrics", params=query)
    assert answer.status_code == 200, answer.text
    return {series["name"]: series["points"] for series in answer.json()["series"]}


def test_several_series_in_order_over_a_range_of_steps(service):
    attempt = service.running()
    post_rows(attempt, *(row(s, "loss", s + u / 10, update=u) for s in (3, 1, 2) for u in (1, 0)))
    post_rows(attempt, *(row(s, value=float(s)) for s in range(6)))
    found = get(service, attempt, name=["loss", "reward", "none"], from_step=1, to_step=2)
    assert [(p["step"], p["update"], p["value"]) for p in found["loss"]] == [
        (1, 0, 1.0),
        (1, 1, 1.1),
        (2, 0, 2.0),
        (2, 1, 2.1),
    ]
    assert [p["value"] for p in found["reward"]] == [1.0, 2.0]
    assert found["none"] == []
    assert set(get(service, attempt)) == {"loss", "reward"}


@pytest.mark.slow
def test_what_a_later_attempt_repeats_does_not_count(service):
    first = service.running()
    post_rows(first, *(row(step, value=1.0) for step in range(1, 8)))
    first.commit(4)
    second = next_attempt(service, first)
    post_rows(second, row(5, value=2.0))
    points = get(service, first, name="reward")["reward"]
    assert [(p["step"], p["value"]) for p in points] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 1.0), (5, 2.0)]


def test_the_answer_says_from_where_to_follow(service):
    attempt = service.running()
    post_rows(attempt, row(1))
    answer = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/metrics").json()
    assert answer["seq"] == service.job(attempt.claim.job_id).seq


def test_a_point_that_is_not_finite_stays_a_hole(service):
    attempt = service.running()
    post_rows(attempt, row(1, value=None), row(2, value=3.0), row(3, value=None))
    assert [p["value"] for p in get(service, attempt)["reward"]] == [None, 3.0, None]
    merged = get(service, attempt, max_points=2)["reward"]
    assert [(p["value"], p["low"], p["high"]) for p in merged] == [(3.0, 3.0, 3.0), (None, None, None)]


@pytest.mark.parametrize(
    ("query", "path"),
    [({"max_points": 1}, "max_points"), ({"from_step": -1}, "from_step"), ({"to_step": 2**40}, "to_step")],
)
def test_wrong_ranges_are_named(service, query, path):
    answer = service.person.get(f"/v1/jobs/{service.submit()}/metrics", params=query)
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == path


def test_an_unknown_job_has_no_history(service):
    assert service.person.get("/v1/jobs/job-none/metrics").status_code == 404


VALUES = st.one_of(st.none(), st.floats(-1e6, 1e6, allow_nan=False))


def store_job(session, starts, rows):
    """A job whose attempts start at `starts`; rows are (attempt, step, update) -> value."""
    person = add_person(session)
    now = datetime.now(UTC)
    job = Job(
        id="job-x", name="x", state="running", spec={"training": {"minibatches": 3, "epochs": 1}},
        algorithm="pmpo", total_steps=100, spec_sha256="", created_by=person.person_id, created_at=now,
        project_id="default",
    )  # fmt: skip
    session.add(job)
    session.flush()
    for number, start in enumerate(starts, 1):
        session.add(
            Attempt(
                id=f"job-x.{number}", job_id="job-x", number=number, state="ended", first_step=start,
                created_at=now,
            )
        )  # fmt: skip
    for (attempt, step, update), value in rows.items():
        place = {"job_id": "job-x", "attempt": attempt, "step": step, "update": update}
        session.add(Metric(**place, name="m", value=value, seq=1))
    session.flush()


@pytest.mark.slow
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(data=st.data())
def test_a_row_counts_iff_no_later_attempt_starts_at_or_before_its_step(database, data):
    """And thinning them keeps the extremes, the order and the last point, with blocks as without."""
    starts = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5), label="first steps")
    keys = st.tuples(st.integers(1, len(starts)), st.integers(0, 40), st.integers(0, 2))
    rows = data.draw(st.dictionaries(keys, VALUES, max_size=60), label="rows")
    # two attempts never both count at a step: an attempt writes from its first step on
    rows = {key: value for key, value in rows.items() if key[1] >= starts[key[0] - 1]}
    most = data.draw(st.integers(2, 20), label="most points")

    counting = {
        (step, update): value
        for (attempt, step, update), value in rows.items()
        if not any(start <= step for start in starts[attempt:])
    }
    with database.write() as session:
        store_job(session, starts, rows)
        whole = metrics_history(session, "job-x", ["m"], None, None, 10_000).series[0].points
        thin = metrics_history(session, "job-x", ["m"], None, None, most).series[0].points
        for attempt in session.scalars(select(Attempt)):
            if written := [step for number, step, _ in rows if number == attempt.number]:
                summarise(session, attempt, min(written), max(written))
        from_blocks = metrics_history(session, "job-x", ["m"], None, None, most).series[0].points
        session.rollback()

    assert [(point.step, point.update) for point in whole] == sorted(counting)
    assert [point.value for point in whole] == [counting[place] for place in sorted(counting)]
    span = whole[-1].step - whole[0].step + 1 if whole else 0
    if 3 * span <= most:
        assert thin == whole
        return
    for points in (thin, from_blocks):
        assert len(points) <= most
        assert [(p.step, p.update) for p in points] == sorted({(p.step, p.update) for p in points})
        last = points[-1]
        assert (last.step, last.update, last.value) == (whole[-1].step, whole[-1].update, whole[-1].value)
        finite = filter_none(point.value for point in whole)
        lows = [p.value if p.low is None else p.low for p in points]
        highs = [p.value if p.high is None else p.high for p in points]
        assert min(filter_none(lows), default=0) == pytest.approx(min(finite, default=0), rel=1e-5)
        assert max(filter_none(highs), default=0) == pytest.approx(max(finite, default=0), rel=1e-5)
        assert all(p.low <= p.value <= p.high for p in points if p.value is not None and p.low is not None)


def filter_none(values):
    return [value for value in values if value is not None]
