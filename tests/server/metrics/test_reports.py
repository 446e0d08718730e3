"""Reports that are stored together: as alone, and none stands or falls with another."""

import asyncio
import threading
from typing import Any

import pytest
from sqlalchemy import select

from powermean.contracts.metrics import MetricRow
from powermean.tokens import AttemptClaims
from server.db.models import Base, Job, Metric, MetricBlock, MetricReport
from server.db.session import DatabaseBusyError
from server.metrics import reports
from server.metrics.reports import MOST_ROWS, Report, accept, store_alone
from tests.support.reports import post_rows, row
from tests.support.service_driver import AttemptDriver, ServiceDriver


def report(attempt: AttemptDriver, *rows: dict[str, Any], number: int = 1) -> Report:
    claims = AttemptClaims(attempt.claim.job_id, number, frozenset())
    return Report(attempt.id, claims, [MetricRow(**one) for one in rows])


def running(service: ServiceDriver, count: int) -> list[AttemptDriver]:
    """Attempts of different jobs, side by side on a node."""
    ids = [service.queued() for _ in range(count)]
    service.report(cpu_slots=count)
    service.scheduler.turn()
    return [service.claim(f"{job_id}.1") for job_id in ids]


def stored(service: ServiceDriver, model: type[Base], job_id: str) -> list[tuple[Any, ...]]:
    """The job's rows, without its id, in order."""
    columns = [column for column in model.__table__.columns if column.name != "job_id"]
    with service.database.read() as session:
        found = session.execute(select(*columns).where(model.__table__.c.job_id == job_id))
        return sorted(map(tuple, found), key=repr)


def steps(first: int, last: int) -> list[dict[str, Any]]:
    """An update's number may be missing, and one that is not finite is null."""
    names = ("reward", "p/last_pass/mean", "eval/reward")
    whole = [row(step, name, step / 10) for step in range(first, last + 1) for name in names]
    return [*whole, row(last, "loss", None, update=0), row(last, "loss", 1e-310, update=1)]


@pytest.mark.slow
def test_they_are_stored_as_if_each_had_come_alone(service: ServiceDriver):
    first, second, third = running(service, 3)
    for rows in (steps(0, 1), steps(2, 17), steps(18, 18)):  # the second fills a block of 16
        with service.database.write() as session:
            assert accept(session, [report(first, *rows), report(second, *rows)]) == [True, True]
        store_alone(service.database, report(third, *rows))
    ids = [attempt.claim.job_id for attempt in (first, second, third)]
    for model in (Metric, MetricBlock, MetricReport):
        together, again, alone = (stored(service, model, job_id) for job_id in ids)
        assert together == again == alone != []
    shown = ("step", "seq", "last_reward", "last_p", "held_out", "held_out_before")
    with service.database.read() as session:
        jobs = [session.get_one(Job, job_id) for job_id in ids]
    assert len({tuple(getattr(job, name) for name in shown) for job in jobs}) == 1
    assert (jobs[0].step, jobs[0].last_reward) == (18, 1.8)


@pytest.mark.slow
def test_what_has_to_be_looked_at_is_left_open(service: ServiceDriver):
    one, other = running(service, 2)
    post_rows(one, row(3))
    left_open = [
        report(one),
        report(one, row(3)),  # a repetition
        report(one, row(2)),
        report(one, row(4), row(4)),
        report(one, row(21)),
        report(one, row(4, update=2**20)),
        report(one, row(4), number=2),  # the token is another attempt's
    ]
    for each in left_open:
        with service.database.write() as session:
            assert accept(session, [each, report(other, row(1))])[0] is False
    with service.database.write() as session:
        assert accept(session, [report(one, row(4)), report(one, row(5))]) == [True, False]
    one.finish("failed")
    with service.database.write() as session:
        assert accept(session, [report(one, row(5)), report(other, row(2))]) == [False, True]
    assert [number for number, *_ in stored(service, Metric, one.claim.job_id)] == [3, 4]
    assert [number for number, *_ in stored(service, Metric, other.claim.job_id)] == [1, 2]


@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_a_job_that_somebody_has_locked_holds_up_no_other(service: ServiceDriver):
    one, other = running(service, 2)
    with service.database.write() as session:
        session.get(Job, one.claim.job_id, with_for_update=True)
        with service.database.write() as beside:
            assert accept(beside, [report(one, row(1)), report(other, row(1))]) == [False, True]
        late = threading.Thread(target=post_rows, args=(one, row(1)))
        late.start()
        post_rows(other, row(2))
    late.join()
    assert len(stored(service, Metric, one.claim.job_id)) == 1


def together(service: ServiceDriver, wanted: list[Report]) -> list[bool]:
    async def store_all() -> list[bool]:
        return await asyncio.gather(*map(service.app.state.reports.store, wanted))

    return asyncio.run(store_all())


@pytest.mark.slow
def test_what_the_database_refuses_leaves_each_to_itself(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    one, other = running(service, 2)

    def refuse(session, wanted):
        accept(session, wanted)
        raise RuntimeError("a value that no column takes")

    monkeypatch.setattr(reports, "accept", refuse)
    assert together(service, [report(one, row(1)), report(other, row(1))]) == [False, False]
    assert "a value that no column takes" in caplog.text
    assert stored(service, Metric, one.claim.job_id) == []
    post_rows(one, row(1))
    assert len(stored(service, Metric, one.claim.job_id)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_large_report_goes_alone_and_a_busy_database_is_said(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    attempt = service.running()

    def busy(session, wanted):
        raise DatabaseBusyError("others hold it")

    monkeypatch.setattr(reports, "accept", busy)
    assert attempt.post("metrics", {"rows": [row(1)]}).status_code == 503
    post_rows(attempt, *(row(1, f"m{number}") for number in range(MOST_ROWS + 1)))
