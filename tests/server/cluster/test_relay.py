"""The outbox: sent, sent again until somebody acts, and not lost with the broker."""

import logging
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import redis
from sqlalchemy import select, update

from powermean.cli.redis_server import valkey_program
from powermean.contracts.names import START_TASK, VALIDATE_TASK, node_queue
from server.cluster.check_order import ROOM
from server.cluster.checks import KEPT
from server.cluster.relay import Relay
from server.cluster.scheduler import NO_CHECKER
from server.db.models import Outbox
from server.db.session import database_now
from server.jobs.states import CHECKING
from server.queue import BrokerDownError, CelerySender, celery_app
from tests.server.cluster.test_scheduling import silence_node
from tests.support.service_driver import ServiceDriver


def let_pauses_pass(service: ServiceDriver) -> None:
    with service.database.write() as session:
        session.execute(update(Outbox).values(next_send_at=database_now(session) - timedelta(seconds=1)))


def pause_of(service: ServiceDriver, subject: str) -> float:
    with service.database.read() as session:
        row = session.execute(select(Outbox).where(Outbox.subject == subject)).scalar_one()
        return (row.next_send_at - database_now(session)).total_seconds()


def test_a_check_waits_for_a_node_and_goes_to_a_living_one(service: ServiceDriver):
    job_id = service.submit()
    service.relay.turn()
    assert service.sender.sent == []
    service.report("node-7")
    let_pauses_pass(service)
    service.relay.turn()
    assert service.sender.sent == [(VALIDATE_TASK, node_queue("node-7"), job_id)]


@pytest.mark.parametrize("kind", ["postgres"], indirect=True)
def test_what_somebody_is_settling_holds_up_nothing_else(service: ServiceDriver):
    held, other = service.submit(), service.submit()
    service.report()
    with service.database.write() as session:
        session.scalars(select(Outbox).where(Outbox.subject == held).with_for_update()).one()
        service.relay.turn()  # waited for as long as this holds the message, it would fail
    assert [subject for _task, _queue, subject in service.sender.sent] == [other]
    service.relay.turn()
    assert [subject for _task, _queue, subject in service.sender.sent] == [other, held]


def test_a_check_that_nobody_does_is_sent_to_the_next_node(service: ServiceDriver):
    service.report("node-1")
    service.report("node-2")
    service.submit()
    for _ in range(4):
        let_pauses_pass(service)
        service.relay.turn()
    queues = [queue for _, queue, _ in service.sender.sent]
    assert sorted(queues) == [node_queue("node-1")] * 2 + [node_queue("node-2")] * 2
    assert queues[0] != queues[1]


@pytest.mark.parametrize(
    ("needs", "able"),
    [
        ({"resources": {"gpus": 1}}, ["gpu", "gpus"]),
        ({"resources": {"gpus": 1, "placement": "split"}}, ["gpus"]),
        ({"rollout": {"engine": "vllm"}}, ["cpu-vllm"]),
        ({"rollout": {"publish": "gloo"}}, ["cpu-vllm"]),
        ({}, ["cpu", "cpu-vllm"]),
        # None could: the nearest say so.
        ({"resources": {"gpus": 1}, "rollout": {"engine": "vllm"}}, ["gpu", "gpus"]),
        ({"resources": {"gpus": 1, "gpu_type": "B200"}}, ["gpu", "gpus"]),
        ({"resources": {"gpus": 1, "node_labels": {"zone": "b"}}}, ["gpu", "gpus"]),
        ({"resources": {"gpus": 16}}, ["gpus"]),
        ({"resources": {"node_labels": {"zone": "b"}}}, ["cpu", "cpu-vllm", "gpu", "gpus"]),
    ],
)
def test_a_check_goes_to_nodes_that_could_run_the_job_if_there_are_any(service: ServiceDriver, needs, able):
    service.report("cpu")
    service.report("cpu-vllm", engines=("transformers", "vllm"))
    service.report("gpu", cpu_slots=0, gpus=1)
    service.report("gpus", cpu_slots=0, gpus=2)
    service.submit(**needs)
    for _ in range(8):
        let_pauses_pass(service)
        service.relay.turn()
    assert {queue for _, queue, _ in service.sender.sent} == {node_queue(name) for name in able}


@pytest.mark.parametrize("more", [{}, {"gpu_type": "B200"}], ids=["could run it", "is the nearest"])
def test_a_check_waits_for_the_silent_node_that_alone_could_run_the_job_and_says_so(
    service: ServiceDriver, more: dict[str, str]
):
    service.report("gpu", gpus=1)
    silence_node(service, "gpu")
    service.report("cpu")
    job_id = service.submit(resources={"gpus": 1} | more)
    service.relay.turn()
    service.scheduler.turn()
    assert service.sender.sent == []
    assert service.job(job_id).phase == NO_CHECKER
    service.report("gpu", gpus=1)
    service.scheduler.turn()
    assert service.job(job_id).phase == CHECKING
    let_pauses_pass(service)
    service.relay.turn()
    assert service.sender.sent == [(VALIDATE_TASK, node_queue("gpu"), job_id)]


def sent_jobs(service: ServiceDriver) -> list[str]:
    """What was sent since this was last asked."""
    jobs = [subject for _, _, subject in service.sender.sent]
    service.sender.sent.clear()
    return jobs


def test_projects_take_turns_with_checks_and_a_node_gets_no_more_than_it_can_soon_do(
    service: ServiceDriver,
):
    service.report()
    service.project("team-a")
    service.project("team-b")
    first = [service.submit(project="team-a") for _ in range(6)]
    service.relay.turn()
    assert sent_jobs(service) == first[:ROOM]
    other = service.submit(project="team-b")
    service.relay.turn()
    assert sent_jobs(service) == []
    woken: list[bool] = []
    service.database.listen(lambda changed: woken.append(changed.send))
    service.validate(first[0])
    assert any(woken)
    service.relay.turn()
    assert sent_jobs(service) == [other]
    service.person.post(f"/v1/jobs/{first[1]}/cancel")
    service.validate(other)
    service.relay.turn()
    assert sent_jobs(service) == first[ROOM:]


def test_checks_that_nobody_settles_hold_up_others_only_until_they_are_due_again(service: ServiceDriver):
    service.report()
    stuck = [service.submit() for _ in range(ROOM)]
    fresh = service.submit()
    for _ in range(KEPT):  # the node may only be slow
        service.relay.turn()
        assert sent_jobs(service) == stuck
        let_pauses_pass(service)
    with service.database.write() as session:  # all of this took an hour
        session.execute(update(Outbox).values(created_at=database_now(session) - timedelta(hours=1)))
    service.relay.turn()
    assert sent_jobs(service)[0] == fresh


def test_a_node_without_room_holds_up_no_checks_that_others_can_do(service: ServiceDriver):
    service.report("cpu")
    service.report("gpu", cpu_slots=0, gpus=1)
    gpu_jobs = [service.submit(resources={"gpus": 1}) for _ in range(ROOM + 1)]
    cpu_jobs = [service.submit() for _ in range(ROOM + 1)]
    service.relay.turn()
    queues = {queue: set[str]() for queue in (node_queue("cpu"), node_queue("gpu"))}
    for _, queue, job_id in service.sender.sent:
        queues[queue].add(job_id)
    assert queues == {node_queue("gpu"): set(gpu_jobs[:ROOM]), node_queue("cpu"): set(cpu_jobs[:ROOM])}


def test_an_attempt_is_sent_to_its_node_until_it_is_claimed(service: ServiceDriver):
    job_id = service.started()
    start = (START_TASK, node_queue("node-1"), f"{job_id}.1")
    pauses = []
    for _ in range(3):
        let_pauses_pass(service)
        service.relay.turn()
        service.relay.turn()  # the pause holds
        pauses.append(pause_of(service, f"{job_id}.1"))
    assert service.sender.sent == [start] * 3
    first = service.settings.resend_s
    assert pauses == pytest.approx([first, 2 * first, 4 * first], abs=2)
    service.claim(f"{job_id}.1")
    let_pauses_pass(service)
    service.relay.turn()
    assert service.sender.sent == [start] * 3


def test_nothing_is_sent_about_a_cancelled_job(service: ServiceDriver):
    job_id = service.submit()
    service.report()
    service.person.post(f"/v1/jobs/{job_id}/cancel")
    service.relay.turn()
    assert service.sender.sent == []


@pytest.mark.slow
def test_a_broker_that_is_down_is_survived(service: ServiceDriver, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    service.report()
    jobs = [service.submit() for _ in range(3)]
    service.sender.down = True
    for _ in range(5):
        let_pauses_pass(service)
        service.relay.turn()
    assert [r.levelname for r in caplog.records if "broker" in r.message] == ["ERROR"]
    service.sender.down = False
    let_pauses_pass(service)
    service.relay.turn()
    assert [subject for _, _, subject in service.sender.sent] == jobs
    assert [r.levelname for r in caplog.records if "broker" in r.message] == ["ERROR", "INFO"]


class Broker:
    """A real Redis server on a port of its own, which can be killed and started again, empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        program = valkey_program()
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self.folder)]
        self.process = subprocess.Popen([str(program), *options], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 20
        with redis.Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                    return
                except redis.ConnectionError:
                    assert time.monotonic() < deadline, "the broker did not start"
                    time.sleep(0.02)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait(10)
            self.process = None

    def queued(self, queue: str) -> int:
        with redis.Redis.from_url(self.url) as client:
            return int(client.llen(queue))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path)
    made.start()
    yield made
    made.kill()


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_messages_that_the_broker_lost_are_sent_again(service: ServiceDriver, broker: Broker):
    settings = service.settings.model_copy(update={"redis_url": broker.url})
    app = celery_app(settings)
    relay = Relay(service.database, settings, CelerySender(app))
    service.started()
    queue = node_queue("node-1")
    relay.turn()
    assert broker.queued(queue) == 1
    broker.kill()
    let_pauses_pass(service)
    relay.turn()
    assert relay.broker_down
    broker.start()
    assert broker.queued(queue) == 0
    let_pauses_pass(service)
    relay.turn()
    assert not relay.broker_down
    assert broker.queued(queue) == 1
    app.close()


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_a_broker_that_is_not_there_is_an_error_in_time(service: ServiceDriver):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{probe.getsockname()[1]}/0"
    app = celery_app(service.settings.model_copy(update={"redis_url": url}))
    started = time.monotonic()
    with pytest.raises(BrokerDownError):
        CelerySender(app).send(START_TASK, "node.x", "job.1", 60)
    assert time.monotonic() - started < 15
    app.close()
