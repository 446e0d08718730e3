"""A clock that was an hour ahead has been set right: what it wrote holds nothing up."""

from datetime import UTC, datetime, timedelta, tzinfo
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import DateTime, func, select, update
from sqlalchemy.orm import Session

from powermean.contracts.api import JobState
from powermean.tokens import sign_attempt_token
from server import readiness
from server.cluster import clock
from server.db import session as db_session
from server.db.models import Attempt, Job, Leader, Node, Outbox
from server.db.session import database_now
from tests.support.service_driver import ServiceDriver, error_of

HOUR = timedelta(hours=1)


def written_an_hour_ahead(service: ServiceDriver) -> None:
    with service.database.write() as session:
        ahead = database_now(session) + HOUR
        for change in (
            update(Leader).values(expires_at=ahead),
            update(Attempt).values(lease_expires_at=ahead),
            update(Node).values(seen_at=ahead),
            update(Outbox).where(Outbox.done_at.is_(None)).values(next_send_at=ahead),
            update(Job).where(Job.state == "queued").values(not_before=ahead),
        ):
            session.execute(change)


def seconds_ahead(service: ServiceDriver, column: Any, **where: Any) -> float:
    with service.database.read() as session:
        found = session.execute(select(column).filter_by(**where)).scalar_one()
        return (found - database_now(session)).total_seconds()


@pytest.mark.parametrize("holder", ["first", "second"])
def test_a_lease_from_the_future_is_void(service: ServiceDriver, holder: str):
    service.scheduler.turn()
    written_an_hour_ahead(service)
    job_id = service.queued()
    service.report()
    service.replica(holder).turn()
    assert service.job(job_id).state is JobState.STARTING
    assert seconds_ahead(service, Leader.expires_at) <= service.settings.leader_lease_s


@pytest.mark.slow
def test_nothing_waits_or_lives_an_hour_longer(service: ServiceDriver):
    attempt = service.running()
    waiting = service.queued()
    unchecked = service.submit()
    service.scheduler.turn()
    written_an_hour_ahead(service)
    service.scheduler.turn()
    assert seconds_ahead(service, Attempt.lease_expires_at) <= service.settings.lease_s
    assert seconds_ahead(service, Node.seen_at) <= 0
    assert seconds_ahead(service, Outbox.next_send_at, subject=unchecked) <= 0
    assert seconds_ahead(service, Job.not_before, id=waiting) <= 0
    service.let_lease_run_out(attempt.id)
    service.scheduler.turn()
    assert attempt.beat().status_code == 409


@pytest.mark.parametrize("shift", [HOUR, -HOUR])
def test_readiness_says_that_nothing_is_scheduled(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch, shift: timedelta
):
    monkeypatch.setattr(readiness, "_check_redis", lambda url: None)
    monkeypatch.setattr(readiness, "READINESS_S", -1)
    monkeypatch.setattr(readiness, "LEADER_WITHIN_S", 0)
    taking_part = service.settings.model_copy(update={"scheduler": True})
    check = readiness._check_scheduler
    monkeypatch.setattr(readiness, "_check_scheduler", lambda database, _: check(database, taking_part))
    monkeypatch.setattr(readiness, "PATIENCE_S", 30.0)
    assert service.anyone.get("/readyz").json()["status"] == "degraded"  # nobody has led yet
    service.scheduler.turn()
    assert service.anyone.get("/readyz").json() == {"status": "ready", "wrong": []}
    with service.database.write() as session:
        session.execute(update(Leader).values(expires_at=database_now(session) + shift))
    answer = service.anyone.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (
        200,
        "degraded",
    )  # no other server would schedule
    (one,) = answer.json()["wrong"]
    assert (one["path"], one["message"]) == ("scheduler", "has no leader: nothing is scheduled")


def set_ahead(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    """The database's clock; `by` is from its right time."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + by

    monkeypatch.setattr(db_session, "datetime", Ahead)
    monkeypatch.setattr(db_session, "_NOW", select(func.clock_timestamp(type_=DateTime(True)) + by))


def turn(service: ServiceDriver) -> None:
    service.scheduler.limits_at = float("-inf")
    service.scheduler.turn()


@pytest.mark.slow
def test_a_clock_that_is_an_hour_ahead_for_seconds_ends_nothing(
    service: ServiceDriver, monkeypatch: pytest.MonkeyPatch
):
    """Nor does a job that has a limit end early when the clock stays there."""
    attempt = service.running(limits={"wall_hours": 0.5})
    with service.database.read() as session:
        at = database_now(session) + HOUR / 2
    answer = service.person.post("/v1/nodes/node-1/drain", json={"at": at.isoformat()})
    assert answer.status_code == 200, answer.text
    turn(service)
    for by in (HOUR, timedelta(0), HOUR):
        set_ahead(monkeypatch, by)
        turn(service)
        assert attempt.beat(ran_s=60.0).json()["order"] == "continue"
        service.report()
        turn(service)
        assert service.person.get("/v1/nodes/node-1").json()["closed"] is None
    service.scheduler.clock.trusted_from = float("-inf")
    turn(service)
    assert service.person.get("/v1/nodes/node-1").json()["closed"] == "draining"
    answer = attempt.beat(ran_s=60.0).json()
    assert answer["order"] == "checkpoint_and_exit"
    (told,) = service.job(attempt.claim.job_id).attempts
    assert told.order_cause == "drained"


def test_a_slow_answer_is_no_jump(monkeypatch: pytest.MonkeyPatch):
    here, watch = 1000.0, clock.ClockWatch()

    def trusts(before: float = 0.0, after: float = 0.0, ahead: float = 0.0) -> bool:
        """The database reads its clock so long after it was asked, and answers so long after that."""

        def answer(session: Session) -> datetime:
            nonlocal here
            here += before
            now = datetime.fromtimestamp(here + ahead, UTC)
            here += after
            return now

        monkeypatch.setattr(clock, "database_now", answer)
        return watch.trusts(Session())

    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: here))
    assert [trusts(), trusts(after=20), trusts(), trusts(before=20), trusts(9, 9)] == [True] * 5
    assert not trusts(9, 9, ahead=30)
    assert not trusts(ahead=30)
    here += clock.SETTLE_S
    assert trusts(ahead=30)
    assert not trusts()


def old_token(service: ServiceDriver, job_id: str, number: int) -> str:
    """A token that ran out while the server could not be reached."""
    with service.database.read() as session:
        an_hour_ago = database_now(session) - HOUR
    return sign_attempt_token(service.app.state.key_pair.private_pem, job_id, number, now=an_hour_ago)


def test_a_current_attempt_renews_a_token_that_ran_out(service: ServiceDriver):
    attempt = service.running()
    attempt.token = old_token(service, attempt.claim.job_id, 1)
    assert attempt.commit(1).status_code == 401  # it only renews
    answer = attempt.beat()
    assert answer.status_code == 200
    attempt.token = answer.json()["token"]
    assert attempt.commit(1).status_code == 204


def replaced(service: ServiceDriver, attempt_id: str) -> None:
    service.let_lease_run_out(attempt_id)
    service.report("node-2")
    service.scheduler.turn()


def test_a_token_that_ran_out_does_nothing_for_a_replaced_attempt(service: ServiceDriver):
    attempt = service.running()
    replaced(service, attempt.id)
    attempt.token = old_token(service, attempt.claim.job_id, 1)
    assert attempt.beat().status_code == 409
    assert error_of(attempt.beat())["code"] == "fenced"


def test_a_forged_token_renews_nothing(service: ServiceDriver):
    attempt = service.running()
    head, body, _ = old_token(service, attempt.claim.job_id, 1).split(".")
    attempt.token = f"{head}.{body}.{'A' * 86}"
    assert attempt.beat().status_code == 401
