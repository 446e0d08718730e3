"""Several replicas of the server at once: what one of them decides or sends, no other does again."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from sqlalchemy import select
from sqlalchemy.exc import OperationalError

from powermean.contracts.api import JobState
from powermean.contracts.names import START_TASK, VALIDATE_TASK
from server.cluster.check_order import ROOM
from server.cluster.leadership import Standing, acquire_lead, keeps_lead, leader, resign
from server.cluster.relay import Relay
from server.db.models import Allocation
from server.db.session import Database
from tests.support.service_driver import RecordingSender, ServiceDriver

REPLICAS = 4


@pytest.mark.slow
def test_schedulers_at_once_start_each_job_once(service: ServiceDriver):
    jobs = [service.queued() for _ in range(6)]
    service.report("node-1", cpu_slots=2)
    service.report("node-2", cpu_slots=1)
    replicas = [service.replica(f"replica-{i}") for i in range(REPLICAS)]
    for replica in replicas:
        replica.settings = service.settings.model_copy(update={"leader_lease_s": 0.001})  # all get to lead
    with ThreadPoolExecutor(REPLICAS) as pool:
        list(pool.map(lambda turn: replicas[turn % REPLICAS].turn(), range(20)))
    found = [service.job(job_id) for job_id in jobs]
    assert [job.state for job in found] == [JobState.STARTING] * 3 + [JobState.QUEUED] * 3
    assert [job.attempt for job in found] == [1, 1, 1, 0, 0, 0]
    with service.database.read() as session:
        held = session.execute(select(Allocation.node_id).where(Allocation.role == "trainer")).scalars()
        assert Counter(held) == {"node-1": 2, "node-2": 1}


@pytest.mark.slow
def test_relays_at_once_send_each_message_once_and_no_more_checks_than_there_is_room_for(
    service: ServiceDriver,
):
    service.report("node-1", cpu_slots=20)
    jobs = [service.queued() for _ in range(10)]
    unchecked = [service.submit() for _ in range(ROOM + 2)]
    service.scheduler.turn()
    senders = [RecordingSender() for _ in range(REPLICAS)]
    databases = [Database(service.settings.database_url) for _ in range(REPLICAS)]
    relays = [
        Relay(database, service.settings, sender) for database, sender in zip(databases, senders, strict=True)
    ]
    with ThreadPoolExecutor(REPLICAS) as pool:
        list(pool.map(lambda turn: relays[turn % REPLICAS].turn(), range(REPLICAS * 3)))
    sent = Counter(subject for sender in senders for task, _, subject in sender.sent if task == START_TASK)
    assert sent == {f"{job_id}.1": 1 for job_id in jobs}
    sent = Counter(subject for sender in senders for task, _, subject in sender.sent if task == VALIDATE_TASK)
    assert sent == dict.fromkeys(unchecked[:ROOM], 1)
    for database in databases:
        database.close()


@pytest.mark.slow
@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_a_server_that_is_frozen_within_a_transaction_loses_its_locks(
    database_url: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("server.db.session.IDLE_S", 0.5)
    frozen, other = (Database(database_url, statement_s=60) for _ in range(2))
    with other.write() as session:
        acquire_lead(session, "frozen", lease_s=0.001)
    with suppress(OperationalError), frozen.write() as session:
        assert keeps_lead(session, "frozen")  # and locks the row
        with other.write() as others:
            assert acquire_lead(others, "other", lease_s=10) is Standing.NEW_LEADER
        resign(session, "frozen")  # it goes on, and can't write
        raise AssertionError("a transaction outlived its locks")
    with other.read() as session:
        assert leader(session, lease_s=10) == "other"
    frozen.close()
    other.close()


@pytest.mark.postgres
@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_a_follower_does_not_wait_for_what_the_leader_writes(service: ServiceDriver):
    leader, follower = service.replica("leader"), service.replica("follower")
    leader.turn()
    with service.database.write() as session:
        assert keeps_lead(session, "leader")  # and locks the row
        assert follower._acquire_lead() is Standing.FOLLOWER
