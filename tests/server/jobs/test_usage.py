"""GPU-hours: exact however the time or the jobs are parted, and outliving the jobs."""

import csv
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import select, update

from powermean.contracts.sharing import Usage, UsageRow
from server.db.models import Allocation, Attempt, Job, UsageRecord
from server.jobs.allocations import Past
from server.jobs.hours import Holding, holdings, merged
from server.jobs.usage import HOUR, as_csv, report, summed
from tests.support.sample_cluster import opened
from tests.support.service_driver import ServiceDriver, error_of
from tests.support.stored_things import sweep

ZERO = datetime(2026, 11, 1, tzinfo=UTC)
micro = st.integers(0, 10**12)


def at(microseconds: int) -> datetime:
    return ZERO + timedelta(microseconds=microseconds)


@st.composite
def held(draw: st.DrawFn) -> Holding:
    job = draw(st.integers(0, 6))
    start, length = draw(micro), draw(micro | st.none())
    return Holding(
        job_id=f"job-{job}",
        project=f"project-{job % 3}",
        person_id=f"person-{job % 2}",
        gpus=draw(st.integers(0, 8)),
        cpu_slots=draw(st.integers(0, 2)),
        start=at(start),
        end=None if length is None else at(start + length),
        job_name=f"name {job}",
    )


@given(held(), st.lists(micro, min_size=2, max_size=8))
def test_the_parts_of_a_period_add_up_to_the_whole(one: Holding, cuts: list[int]):
    times = [at(cut) for cut in sorted(cuts)]
    parts = sum(one.microseconds(a, b) for a, b in pairwise(times))
    assert parts == one.microseconds(times[0], times[-1])
    assert 0 <= parts <= (times[-1] - times[0]) // timedelta(microseconds=1)


@given(st.lists(held(), max_size=12), micro, micro)
def test_sums_are_equal_by_job_project_and_person(some: list[Holding], a: int, b: int):
    since, until = at(min(a, b)), at(max(a, b))
    sums = []
    for by in ("job", "project", "person"):
        rows = summed(some, by, since, until)  # type: ignore[arg-type]
        sums.append(
            (round(sum(r.gpu_hours for r in rows) * HOUR), round(sum(r.cpu_slot_hours for r in rows) * HOUR))
        )
    whole = sum(one.gpus * one.microseconds(since, until) for one in some)
    assert sums[0] == pytest.approx(sums[1], rel=1e-12)
    assert sums[0] == pytest.approx(sums[2], rel=1e-12)
    assert sums[0][0] == pytest.approx(whole, rel=1e-12)


PART = st.tuples(
    st.integers(1, 2),  # attempt
    st.sampled_from(("n1", "n2")),
    st.sampled_from(((), ("g1",), ("g1", "g2"))),
    st.sampled_from((None, None, "engine-1")),
    st.integers(1, 5) | st.none(),  # released
)


@given(st.lists(PART, max_size=8))
def test_a_gpu_counts_once_until_its_last_part_is_released(drawn):
    rest = ("job-1", "a", "p", "x", "running", False)
    parts = [
        Past(f"job-1.{attempt}", node, gpus, engine, ZERO, None if end is None else at(end), *rest)
        for attempt, node, gpus, engine, end in drawn
    ]
    until = at(10)
    places: dict[tuple[str, str, str | None], int] = {}
    for part in parts:
        if part.engine_id is None:
            for gpu in part.gpu_uuids or (None,):
                key = (part.attempt_id, part.node_id, gpu)
                lasted = 10 if part.end is None else (part.end - ZERO) // timedelta(microseconds=1)
                places[key] = max(places.get(key, 0), lasted)
    found = merged(parts)
    by_gpu = sum(n for (_, _, gpu), n in places.items() if gpu)
    by_slot = sum(n for (_, _, gpu), n in places.items() if not gpu)
    assert sum(one.gpus * one.microseconds(ZERO, until) for one in found) == by_gpu
    assert sum(one.cpu_slots * one.microseconds(ZERO, until) for one in found) == by_slot


def used(service: ServiceDriver, by: str = "project", **query: str) -> Usage:
    answer = service.person.get("/v1/usage", params={"by": by, **query})
    assert answer.status_code == 200, answer.text
    return Usage.model_validate(answer.json())


def finished(service: ServiceDriver, hours: float = 2, **changes: object) -> str:
    """An ended job that held two GPUs for so many hours."""
    attempt = service.running_on(8, resources={"gpus": 1, "placement": "split"}, **changes)
    assert attempt.finish("cancelled").status_code == 204
    job_id = attempt.claim.job_id
    with service.database.write() as session:
        end = opened(session).ago(minutes=1)
        session.execute(
            update(Attempt).where(Attempt.id == attempt.id).values(created_at=end - timedelta(hours=hours))
        )
        session.execute(update(Allocation).where(Allocation.attempt_id == attempt.id).values(released_at=end))
        job = session.get_one(Job, job_id)
        job.state, job.finished_at = "failed", end
    return job_id


def test_a_running_job_counts_up_to_now(service: ServiceDriver):
    attempt = service.running_on(8, resources={"gpus": 1, "placement": "split"})
    with service.database.write() as session:
        start = opened(session).ago(hours=3)
        session.execute(update(Attempt).where(Attempt.id == attempt.id).values(created_at=start))
    (row,) = used(service).rows
    assert (row.key, row.jobs, row.cpu_slot_hours) == ("default", 1, 0)
    assert row.gpu_hours == pytest.approx(6, abs=0.01)
    later = used(service, **{"from": (start + timedelta(hours=1)).isoformat()})
    assert later.total.gpu_hours == pytest.approx(4, abs=0.01)


def test_a_cpu_job_counts_slot_hours(service: ServiceDriver):
    attempt = service.running()
    with service.database.write() as session:
        start = opened(session).ago(hours=3)
        session.execute(update(Attempt).where(Attempt.id == attempt.id).values(created_at=start))
    total = used(service).total
    assert (total.gpu_hours, total.cpu_slot_hours) == (0, pytest.approx(3, abs=0.01))


@pytest.mark.slow
def test_deleted_jobs_leave_their_hours(service: ServiceDriver):
    job_id, kept = finished(service), finished(service, 5, name="kept")
    fixed = {"from": (datetime.now(UTC) - timedelta(days=3)).isoformat()}
    before = {by: used(service, by, **fixed) for by in ("person", "project", "job")}
    assert before["job"].total.gpu_hours == pytest.approx(14)
    assert service.person.delete(f"/v1/jobs/{job_id}").status_code == 204
    assert used(service, "project", **fixed).total == before["project"].total  # marked, its rows still there
    sweep(service)
    for by, was in before.items():
        now = used(service, by, **fixed)
        assert now.total == was.total
        hours = {row.key: (row.gpu_hours, row.jobs) for row in now.rows}
        assert hours == {row.key: (row.gpu_hours, row.jobs) for row in was.rows}
    names = {row.key: row.name for row in used(service, "job", **fixed).rows}
    assert names == {job_id: None, kept: "kept"}  # of a deleted job nothing is left but its id and its hours
    with service.database.read() as session:
        assert session.scalars(select(UsageRecord.job_id)).all() == [job_id]


@pytest.mark.slow
def test_a_new_project_of_an_old_name_starts_with_nothing(service: ServiceDriver):
    service.project("team-b")
    finished(service, project="team-b")
    assert service.person.delete("/v1/projects/team-b?cascade=true").status_code == 204
    sweep(service)
    service.project("team-b")
    member = service.someone(project="team-b")
    assert member.get("/v1/usage").json()["rows"] == []
    assert [row.key for row in used(service).rows] == ["team-b (deleted)"]


@pytest.mark.slow
def test_members_see_the_hours_of_their_projects_alone(service: ServiceDriver):
    service.project("team-b")
    finished(service, name="secret plan", project="team-b")
    mine = finished(service, name="mine")
    member = service.someone()
    for by in ("person", "project", "job"):
        for path in ("/v1/usage", "/v1/usage.csv"):
            answer = member.get(path, params={"by": by})
            assert "team-b" not in answer.text
            assert "secret plan" not in answer.text
    assert [row["key"] for row in member.get("/v1/usage?by=job").json()["rows"]] == [mine]
    assert member.get("/v1/usage?project=team-b").json()["total"]["jobs"] == 0


@pytest.mark.slow
def test_what_other_projects_held_is_not_read(service: ServiceDriver):
    service.project("team-b")
    gone = finished(service, project="team-b")
    mine, theirs = finished(service), finished(service, project="team-b")
    assert service.person.delete(f"/v1/jobs/{gone}").status_code == 204
    sweep(service)
    with service.database.read() as session:
        period = opened(session).ago(days=1), opened(session).now
        for projects, jobs in (
            (None, {gone, mine, theirs}),
            (frozenset({"default"}), {mine}),
            (frozenset({"team-b"}), {gone, theirs}),
            (frozenset(), set()),
        ):
            assert {one.job_id for one in holdings(session, *period, projects)} == jobs
    assert used(service, "job", project="team-b").total.jobs == 2


def test_a_job_that_is_deleted_between_two_queries_counts_once(service: ServiceDriver):
    job_id = finished(service)
    before = used(service).total
    with service.database.write() as session:
        end, owner = opened(session).ago(minutes=1), session.get_one(Job, job_id).created_by
        session.add(
            UsageRecord(
                job_id=job_id, project="default", person_id=owner, gpus=2, cpu_slots=0,
                started_at=end - timedelta(hours=2), ended_at=end,
            )
        )  # fmt: skip
    assert used(service).total.gpu_hours == pytest.approx(before.gpu_hours)


def test_periods_that_make_no_sense(service: ServiceDriver):
    for query in ("from=2999-01-01T00:00:00Z", "from=2026-02-01T00:00:00Z&to=2026-01-01T00:00:00Z"):
        answer = service.person.get(f"/v1/usage?{query}")
        assert answer.status_code == 422, answer.text
        assert error_of(answer)["fields"][0]["path"] == "from"
    for query, path in (
        ("from=0001-01-01T00:00:00%2B14:00", "from"),
        ("to=0001-01-20T00:00:00Z", "to"),  # thirty days before that there are no dates
        ("from=2020-01-01T00:00:00Z&to=2022-01-01T00:00:00Z", "from"),
    ):
        answer = service.person.get(f"/v1/usage?{query}")
        assert answer.status_code == 422, answer.text
        assert error_of(answer)["fields"][0]["path"] == path
    year = "from=2020-01-01T00:00:00Z&to=2021-01-01T00:00:00Z"
    assert service.person.get(f"/v1/usage?{year}").status_code == 200


def test_the_csv_has_the_rows_and_no_formula(service: ServiceDriver):
    finished(service, name='=cmd|"/c calc"!A1, x')
    answer = service.person.get("/v1/usage.csv?by=job")
    assert answer.headers["content-type"].startswith("text/csv")
    heading, row = csv.reader(answer.text.splitlines())
    assert heading == ["key", "name", "project", "gpu_hours", "cpu_slot_hours", "jobs"]
    assert row[1] == '\'=cmd|"/c calc"!A1, x'
    assert float(row[3]) == pytest.approx(4)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_starts_as_a_formula(start: str):
    row = UsageRow(key="job-1", name=f"{start}1+1", project="p", gpu_hours=1, cpu_slot_hours=0, jobs=1)
    made = as_csv(Usage(start=ZERO, end=at(1), by="job", rows=(row,), total=row))
    assert list(csv.reader(made.split("\r\n")))[1][1] == f"'{start}1+1"


@pytest.mark.slow
def test_rows_beyond_the_limit_are_in_the_total(service: ServiceDriver):
    finished(service, 1)
    finished(service, 2)
    with service.database.read() as session:
        found = report(session, None, "job", limit=1)
    assert (found.left_out, found.rows[0].gpu_hours) == (1, pytest.approx(4))
    assert found.total.gpu_hours == pytest.approx(6)
