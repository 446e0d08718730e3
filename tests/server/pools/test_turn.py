"""A pool's turns with an engine that does as the test says: what is asked for, and what its word means."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from powermean.contracts.api import JobState
from powermean.contracts.pools import Shape
from powermean.contracts.revisions import NEWEST
from server.cluster import pilots
from server.db.models import ApiKey, Job, Leader, Node, Pilot, PoolStatus
from server.db.session import database_now
from server.nodes import NodeNameTakenError
from server.pools import life
from server.pools.backend import PilotState
from server.pools.pools_file import PoolsFile
from server.pools.turn import Pools, PoolTurn, Undeclared
from server.settings import Settings
from tests.support.fake_pool_engine import FakeEngine
from tests.support.service_driver import AttemptDriver, ServiceDriver, error_of

ON_POOL = {"resources": {"node_labels": {"pool": "cpu"}}}


@dataclass
class Elastic:
    """A server with one pool of CPU nodes."""

    service: ServiceDriver
    engine: FakeEngine
    pools: Pools
    turns: PoolTurn

    def turn(self) -> None:
        self.service.scheduler.turn()
        self.turns.turn()
        self.service.scheduler.turn()

    def restarted(self) -> None:
        """The server forgets all that is not in the database."""
        self.turns = PoolTurn(self.pools, self.pools.pools[0], self.engine)

    @property
    def pilots(self) -> list[Pilot]:
        with self.service.database.read() as session:
            return list(session.scalars(select(Pilot).order_by(Pilot.created_at)))

    @property
    def error(self) -> str | None:
        with self.service.database.read() as session:
            return session.get_one(PoolStatus, "cpu").error

    def queued(self, **changes: Any) -> str:
        return self.service.queued(**(ON_POOL | changes))

    def report(self, place: int = 0, **changes: Any) -> Any:
        """The pilot's worker reports, with its own token."""
        order = self.engine.orders[place]
        body = {
            "hostname": "c1",
            "instance": order.node_id,
            "cpu_slots": 1,
            "engines": ["transformers"],
            "labels": {"pool": "cpu"},
            "version": "0",
        } | changes
        client = self.service.client(order.secrets["POWERMEAN_NODE_TOKEN"])
        return client.put(f"/v1/nodes/{order.node_id}", json=body)

    def running(self) -> AttemptDriver:
        """A job that runs on a pilot."""
        job_id = self.queued()
        self.turn()
        self.engine.run("1")
        assert self.report().status_code == 200
        self.turn()
        return self.claim(f"{job_id}.1")

    def claim(self, attempt_id: str) -> AttemptDriver:
        return self.service.claim(attempt_id)

    def later(self, **columns: float) -> None:
        """As if so many seconds had passed since a time in the pilots' rows."""
        with self.service.database.write() as session:
            now = database_now(session)
            past = {name: now - timedelta(seconds=seconds) for name, seconds in columns.items()}
            session.execute(update(Pilot).values(past))

    def silent(self, seconds: float) -> None:
        """As if no node had reported for so long, to a server that was there."""
        with self.service.database.write() as session:
            past = database_now(session) - timedelta(seconds=seconds)
            session.execute(update(Node).values(seen_at=past))
            session.execute(update(Leader).values(served_since=past))

    def job(self, job_id: str) -> Any:
        return self.service.job(job_id)

    def restarts(self, job_id: str) -> int:
        with self.service.database.read() as session:
            return session.get_one(Job, job_id).restarts


def declared(**changes: Any) -> PoolsFile:
    pool = {"name": "cpu", "kind": "slurm", "max": 2, "idle_s": 60, "drain_s": 100, "shape": {}}
    return PoolsFile.model_validate({"pools": [pool | {"data_dir": "/tmp/pilots"} | changes]})


def elastic_of(service: ServiceDriver, **changes: Any) -> Elastic:
    engine = FakeEngine()
    given = {"POWERMEAN_SERVER_URL": "http://127.0.0.1:8700"}
    shared = Pools(
        service.database, service.settings, "first", declared(**changes).pools, given, "redis://:secret@r/0"
    )
    found = Elastic(service, engine, shared, PoolTurn(shared, shared.pools[0], engine))
    found.turn()
    return found


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"min_run_s": 10.0})


@pytest.fixture
def elastic(service: ServiceDriver) -> Elastic:
    return elastic_of(service)


def test_a_node_is_asked_for_once_when_a_job_waits(elastic: Elastic):
    assert elastic.engine.orders == []
    job_id = elastic.queued()
    elastic.turn()
    elastic.turn()
    (order,) = elastic.engine.orders
    assert order.shape == Shape(labels={"pool": "cpu"})
    assert order.environment["POWERMEAN_NODE_ID"] == order.node_id
    assert order.environment["POWERMEAN_DATA_DIR"] == f"/tmp/pilots/{order.pilot_id}"
    assert set(order.secrets) == {"POWERMEAN_NODE_TOKEN", "POWERMEAN_REDIS_URL"}
    assert not any(secret in repr(order) for secret in order.secrets.values())
    assert elastic.job(job_id).phase == "pool cpu is starting a node (Slurm: Priority)"
    shown = elastic.service.person.get("/v1/queue").json()["items"][0]
    assert (shown["kind"], shown["reason"]) == ("starting", elastic.job(job_id).phase)


@pytest.mark.slow
def test_a_spec_that_no_living_node_may_check_brings_a_node(elastic: Elastic):
    job_id = elastic.service.submit(**ON_POOL)
    elastic.turn()
    assert len(elastic.engine.orders) == 1
    told = elastic.job(job_id).phase or ""
    assert told == "waiting for a node to check the spec: none is connected; pool cpu is starting a node"
    elastic.engine.run("1")
    elastic.report()
    elastic.turn()
    assert elastic.pilots[0].unneeded_since is None  # it is to check the spec, whenever it hears of it
    elastic.service.validate(job_id)
    elastic.turn()
    assert elastic.job(job_id).state is JobState.STARTING


def test_what_no_pool_could_hold_brings_none(elastic: Elastic):
    elastic.queued(resources={"gpus": 1, "node_labels": {"pool": "cpu"}})
    elastic.turn()
    assert elastic.engine.orders == []


def test_a_pool_has_at_most_its_maximum_and_says_so(elastic: Elastic):
    jobs = [elastic.queued() for _ in range(3)]
    elastic.turn()
    elastic.turn()
    assert len(elastic.engine.orders) == 2
    said = [elastic.job(job_id).phase for job_id in jobs]
    assert said[2].endswith("pool cpu: it has its 2 nodes")
    elastic.later(created_at=30 * 86_400.0)
    elastic.turn()
    assert elastic.engine.cancelled == [], "they keep their places in the engine's queue"


def test_the_job_starts_once_the_node_reports(elastic: Elastic):
    attempt = elastic.running()
    assert elastic.job(attempt.claim.job_id).state is JobState.RUNNING
    assert elastic.pilots[0].state == "running"


def test_an_order_whose_answer_got_lost_is_found_again(elastic: Elastic):
    elastic.engine.loses_answers = True
    elastic.queued()
    elastic.turn()
    assert elastic.pilots[0].external_id is None
    elastic.restarted()
    elastic.turn()
    assert (elastic.pilots[0].external_id, len(elastic.engine.orders)) == ("1", 1)


def test_a_crash_between_row_and_order_is_made_good(elastic: Elastic):
    elastic.queued()
    elastic.engine.refuses = "the server dies here"
    elastic.turn()
    first = elastic.pilots[0]
    elastic.engine.refuses = None
    elastic.restarted()
    elastic.turn()
    assert [one.pilot_id for one in elastic.engine.orders] == [first.id]
    assert elastic.pilots[0].key_id != first.key_id  # nobody knows the token of the order before


def test_an_order_that_the_engine_took_unseen_has_a_valid_token(elastic: Elastic):
    elastic.engine.loses_answers = True
    elastic.queued()
    elastic.turn()
    there = elastic.engine.pilots.pop("1")  # not listed yet
    elastic.engine.refuses = "sbatch: Socket timed out"
    elastic.restarted()
    elastic.turn()
    elastic.engine.pilots["1"] = replace(there, state=PilotState.RUNNING)
    elastic.turn()
    assert elastic.report().status_code == 200
    elastic.engine.end("1", "TIMEOUT", revoked=True)
    elastic.turn()
    with elastic.service.database.read() as session:
        tokens = session.scalars(select(ApiKey).where(ApiKey.node == elastic.pilots[0].node_id)).all()
    assert len(tokens) == 2
    assert all(token.revoked_at for token in tokens)


def test_an_order_keeps_its_token_however_often_it_is_refused(elastic: Elastic, monkeypatch: Any):
    monkeypatch.setattr("server.pools.turn.FIRST_PAUSE_S", 0.0)
    elastic.engine.refuses = "sbatch: no such partition"
    elastic.queued()
    elastic.turn()
    key_id = elastic.pilots[0].key_id
    elastic.turn()
    assert elastic.pilots[0].key_id == key_id


def test_of_two_that_one_order_started_one_goes(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.submit(elastic.engine.orders[0])
    elastic.turn()
    assert elastic.engine.cancelled == ["2"]
    elastic.turn()  # an engine goes on listing what it has ended
    assert (elastic.pilots[0].external_id, elastic.pilots[0].state) == ("1", "pending")
    assert elastic.engine.cancelled == ["2"]
    elastic.engine.end("1", "TIMEOUT")
    elastic.turn()
    assert elastic.pilots[0].state == "ended"


def test_one_that_comes_back_after_it_was_given_up_is_ended_and_a_stranger_is_not(elastic: Elastic):
    attempt = elastic.running()
    there = elastic.engine.pilots.pop("1")
    elastic.turn()
    elastic.turn()
    assert elastic.pilots[0].state == "ended"
    elastic.engine.pilots["1"] = there
    elastic.engine.pilots["99"] = replace(there, pilot_id="cpu-ffffffff", external_id="99")
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    assert error_of(attempt.beat())["code"] == "fenced"


@pytest.mark.parametrize("reason", ["TIMEOUT", "CANCELLED", "PREEMPTED"])
def test_a_revoked_allocation_frees_at_once_and_costs_no_restart(elastic: Elastic, reason: str):
    attempt = elastic.running()
    elastic.engine.end("1", reason, revoked=True)
    elastic.turn()
    job = elastic.job(attempt.claim.job_id)
    assert (job.state, elastic.restarts(job.id)) == (JobState.QUEUED, 0)
    told = job.attempts[0]
    assert (told.outcome, told.error.code) == ("lapsed", "node_gone")
    assert told.error.message == f"pool cpu: Slurm's 1 ended: {reason}"
    assert error_of(attempt.beat())["code"] == "fenced"
    assert [node["id"] for node in elastic.service.person.get("/v1/nodes").json()["items"]] == []
    assert elastic.report().status_code == 401
    assert len(elastic.engine.orders) == 2  # for the job, which waits again


@pytest.mark.slow
def test_a_node_that_failed_counts_as_a_restart(elastic: Elastic):
    attempt = elastic.running()
    elastic.engine.end("1", "NODE_FAIL")
    elastic.turn()
    assert elastic.restarts(attempt.claim.job_id) == 1


def test_nothing_changes_while_the_engine_is_away(elastic: Elastic):
    attempt = elastic.running()
    elastic.engine.down = "squeue: Unable to contact slurm controller"
    elastic.queued()
    elastic.turn()
    elastic.turn()
    assert elastic.error == (
        "squeue: Unable to contact slurm controller; what runs goes on, and nothing is started"
    )
    assert attempt.beat().status_code == 200
    assert len(elastic.engine.orders) == 1
    elastic.engine.down = None
    elastic.turn()
    assert elastic.error is None
    assert len(elastic.engine.orders) == 2


def test_a_pilot_is_gone_when_its_engine_has_left_it_out_twice(elastic: Elastic):
    attempt = elastic.running()
    del elastic.engine.pilots["1"]
    elastic.turn()
    assert elastic.job(attempt.claim.job_id).state is JobState.RUNNING
    elastic.turn()
    assert "does not know it any more" in elastic.job(attempt.claim.job_id).attempts[0].error.message


@pytest.mark.slow
def test_what_its_engine_was_ending_costs_no_restart_when_it_is_gone(elastic: Elastic):
    attempt = elastic.running()
    elastic.engine.pilots["1"] = replace(elastic.engine.pilots["1"], reason="Deleted", revoked=True)
    elastic.turn()
    del elastic.engine.pilots["1"]
    elastic.turn()
    elastic.turn()
    told = elastic.job(attempt.claim.job_id).attempts[0]
    assert told.outcome == "lapsed"
    assert (told.reason or "").endswith("does not know it any more; before: Deleted")
    assert elastic.restarts(attempt.claim.job_id) == 0


@pytest.mark.slow
def test_nothing_starts_on_a_node_that_was_let_go_before_it_reported(elastic: Elastic):
    job_id = elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    elastic.later(started_at=601)
    elastic.turn()
    elastic.engine.run("1")  # its engine takes a while to end it
    assert elastic.report().status_code == 200
    elastic.turn()
    assert elastic.job(job_id).state is JobState.QUEUED


def test_a_refused_order_is_told_and_not_repeated_at_once(elastic: Elastic):
    elastic.engine.refuses = "sbatch: invalid partition specified: gpux"
    job_id = elastic.queued()
    elastic.turn()
    elastic.turn()
    assert elastic.error == "sbatch: invalid partition specified: gpux"
    assert elastic.job(job_id).phase.startswith("pool cpu can't start a node: sbatch: invalid partition")
    elastic.engine.refuses = None
    elastic.turn()
    assert elastic.engine.orders == []  # it pauses


def test_pilots_that_never_become_nodes_are_asked_for_more_and_more_slowly(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.end("1", "FAILED, NonZeroExitCode")
    elastic.turn()
    elastic.turn()
    assert len(elastic.engine.orders) == 1
    assert "the last pilot did not become a node: FAILED, NonZeroExitCode" in (elastic.error or "")
    elastic.later(ended_at=31)
    elastic.turn()
    assert len(elastic.engine.orders) == 2


def test_a_worker_that_does_not_report_in_time_is_ended(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    elastic.later(started_at=601)
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    elastic.turn()
    assert elastic.pilots[0].failed
    assert elastic.pilots[0].reason == "its worker did not report within 600 s"


@pytest.mark.parametrize("refused", [False, True])
def test_one_that_its_engine_never_starts_is_given_up(service: ServiceDriver, refused: bool):
    elastic = elastic_of(service, pending_deadline_s=86_400)
    elastic.engine.refuses = "sbatch: no" if refused else None
    job_id = elastic.queued()
    elastic.turn()
    elastic.later(created_at=86_401)
    elastic.turn()
    said = "Slurm has not started it within 86400 s" + ("" if refused else " (Slurm: Priority)")
    for _ in range(2):  # what was never confirmed is left out of two lists
        elastic.turn()
    (pilot,) = elastic.pilots
    assert (pilot.failed, pilot.state, pilot.reason) == (True, "ended", said)
    shown = "sbatch: no" if refused else said
    assert shown in (elastic.error or "")
    assert shown in (elastic.job(job_id).phase or "")


def test_a_gang_s_nodes_come_together_or_those_that_came_are_used_or_go(service: ServiceDriver):
    elastic = elastic_of(service, pending_deadline_s=3600)
    gang = elastic.queued(resources={"nodes": 2, "node_labels": {"pool": "cpu"}})
    elastic.turn()
    assert len(elastic.engine.orders) == 2
    elastic.engine.run("1")
    elastic.report(revision=NEWEST)
    elastic.later(created_at=3000, unneeded_since=3000)
    elastic.turn()
    assert elastic.engine.cancelled == [], "it waits for the other one, which is on its way"
    small = elastic.queued()
    elastic.turn()
    assert elastic.claim(f"{small}.1").finish("cancelled").status_code == 204, "others use it meanwhile"
    service.person.post(f"/v1/jobs/{small}/cancel")
    elastic.turn()
    elastic.later(created_at=3601)
    elastic.turn()
    elastic.turn()
    reasons = {pilot.external_id: (pilot.state, pilot.reason) for pilot in elastic.pilots}
    assert reasons["1"] == ("ended", "the other nodes of its job did not come in time")
    assert reasons["2"][1].startswith("Slurm has not started it within 3600 s")
    assert elastic.job(gang).state is JobState.QUEUED
    assert len(elastic.engine.orders) == 2
    assert "the last pilot did not become a node: Slurm has not started it" in (elastic.error or "")
    elastic.later(ended_at=31)
    elastic.turn()
    assert len(elastic.engine.orders) == 4, "after a pause both are asked for again"
    elastic.engine.run("3")
    elastic.report(2, revision=NEWEST)
    elastic.later(created_at=3601)
    elastic.turn()
    elastic.turn()
    elastic.later(ended_at=59)
    elastic.turn()
    assert "the last 2 pilots did not become nodes" in (elastic.error or ""), "the pause doubles"


def test_a_gang_that_does_not_come_leaves_the_minimum(service: ServiceDriver):
    elastic = elastic_of(service, pending_deadline_s=3600, min=1, max=3)
    elastic.queued(resources={"nodes": 3, "node_labels": {"pool": "cpu"}})
    elastic.turn()
    assert len(elastic.engine.orders) == 3
    for place in (0, 1):
        elastic.engine.run(str(place + 1))
        elastic.report(place, revision=NEWEST)
    elastic.later(created_at=3601, unneeded_since=3000)
    with service.database.write() as session:  # the one to go for that, by its name the last to go as alone
        last = max(one.pilot_id for one in elastic.engine.orders[:2])
        past = database_now(session) - timedelta(seconds=3001)
        session.execute(update(Pilot).where(Pilot.id == last).values(unneeded_since=past))
    elastic.turn()
    assert len(elastic.engine.cancelled) == 2
    assert "3" in elastic.engine.cancelled


def test_a_pilot_that_its_engine_starts_again_has_the_whole_time_to_report(service: ServiceDriver):
    elastic = elastic_of(service, pending_deadline_s=700)
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    elastic.later(created_at=86_400, started_at=601)
    elastic.engine.pilots["1"] = replace(elastic.engine.pilots["1"], state=PilotState.PENDING)
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    assert elastic.engine.cancelled == []


def test_a_node_with_less_than_its_shape_is_let_go(service: ServiceDriver):
    elastic = elastic_of(service, shape={"gpus": 1, "gpu_type": "H100"})
    elastic.queued(resources={"gpus": 1, "gpu_type": "H100"})
    elastic.turn()
    elastic.engine.run("1")
    elastic.report(gpus=[{"uuid": "g", "name": "NVIDIA A100", "memory_mb": 80_000}])
    elastic.turn()
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    assert elastic.pilots[0].reason == "its node has 0 GPUs called H100 as shape says, instead of 1"
    assert len(elastic.engine.orders) == 1


@pytest.mark.slow
def test_an_idle_node_is_let_go_down_to_the_minimum(service: ServiceDriver):
    elastic = elastic_of(service, min=1)
    elastic.turn()
    assert len(elastic.engine.orders) == 1  # without any work
    jobs = [elastic.queued() for _ in range(2)]
    elastic.turn()
    for place in (0, 1):
        elastic.engine.run(str(place + 1))
        elastic.report(place)
    elastic.turn()
    for job_id in jobs:
        assert elastic.claim(f"{job_id}.1").finish("cancelled").status_code == 204
        elastic.service.person.post(f"/v1/jobs/{job_id}/cancel")
    elastic.turn()
    elastic.later(unneeded_since=59)
    elastic.turn()
    assert elastic.engine.cancelled == []
    elastic.later(unneeded_since=61)
    elastic.turn()
    assert len(elastic.engine.cancelled) == 1
    elastic.turn()
    assert sorted(pilot.state for pilot in elastic.pilots) == ["ended", "running"]


@pytest.mark.slow
def test_a_node_that_falls_silent_is_not_waited_for(elastic: Elastic):
    attempt = elastic.running()
    elastic.report(running=[attempt.claim.attempt_id])
    elastic.silent(599)
    elastic.service.let_lease_run_out(attempt.claim.attempt_id)
    elastic.turn()
    assert len(elastic.engine.orders) == 2
    assert elastic.engine.cancelled == []
    elastic.silent(601)
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    elastic.turn()
    assert elastic.pilots[0].reason == "its node has not reported for 600 s"
    assert not elastic.pilots[0].failed


def test_nodes_that_could_not_report_while_no_server_was_there_are_waited_for(elastic: Elastic):
    elastic.running()
    with elastic.service.database.write() as session:
        session.execute(update(Node).values(seen_at=database_now(session) - timedelta(hours=1)))
    elastic.queued()
    elastic.turn()
    assert (len(elastic.engine.orders), elastic.engine.cancelled) == (1, [])


@pytest.mark.slow
def test_pilots_are_ended_whatever_else_the_engine_refuses(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    elastic.engine.refuses = "sbatch: no such partition"
    elastic.queued()
    elastic.turn()
    elastic.later(started_at=601)
    elastic.engine.keeps = "1"
    elastic.turn()
    assert elastic.error == "scancel: 1 stays; sbatch: no such partition"
    elastic.engine.keeps = None
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    assert elastic.error == "sbatch: no such partition"


def test_each_pilot_is_ended_whichever_the_engine_keeps(elastic: Elastic):
    for _ in range(2):
        elastic.queued()
    elastic.turn()
    for external_id in ("1", "2"):
        elastic.engine.run(external_id)
    elastic.turn()
    elastic.later(started_at=601)
    elastic.engine.keeps = "1"
    elastic.turn()
    assert elastic.engine.cancelled == ["2"]
    assert elastic.error == "scancel: 1 stays"


@pytest.mark.slow
def test_a_node_drains_before_its_time_is_over(elastic: Elastic):
    attempt = elastic.running()
    with elastic.service.database.read() as session:
        now = database_now(session)
    elastic.engine.run("1", ends_at=now + timedelta(seconds=99))  # somebody has shortened it
    elastic.turn()
    elastic.turn()
    assert attempt.beat().json()["order"] == "checkpoint_and_exit"
    attempt.finish("checkpointed")
    elastic.report()
    elastic.turn()
    elastic.turn()
    told = elastic.job(attempt.claim.job_id).attempts[0]
    assert "its time in pool cpu ends at" in told.reason
    assert elastic.engine.cancelled == ["1"]
    assert len(elastic.engine.orders) == 2


def test_jobs_leave_a_node_whose_allocation_is_being_ended_and_learn_by_whom(
    elastic: Elastic, monkeypatch: pytest.MonkeyPatch
):
    before = elastic.running()
    assert before.finish("cancelled").status_code == 204
    elastic.service.person.post(f"/v1/jobs/{before.claim.job_id}/cancel")
    job_id, node = elastic.queued(), elastic.engine.orders[0].node_id
    elastic.turn()
    attempt = elastic.claim(f"{job_id}.1")
    assert elastic.report(leaving=True).status_code == 200
    elastic.turn()
    assert attempt.beat().json()["order"] == "checkpoint_and_exit"
    attempt.commit(3)
    assert attempt.finish("checkpointed", reason=f"allocation {node} was being ended").status_code == 204
    elastic.turn()
    job = elastic.job(attempt.claim.job_id)
    assert (job.state, len(job.attempts)) == (JobState.QUEUED, 1), "nothing starts there"
    assert elastic.restarts(job.id) == 0
    elastic.later(unneeded_since=61)
    elastic.turn()
    assert elastic.engine.cancelled == [], "whoever ends it does so, and is not to be taken for us"
    elastic.engine.knows["1"] = "by ada (user 1000)"
    elastic.engine.end("1", "CANCELLED", revoked=True)
    locked: list[str] = []
    monkeypatch.setattr(life, "lock_job", lambda _, job_id: locked.append(job_id))
    elastic.turn()
    assert locked == [job_id], "not the job that ended before"
    told = elastic.job(job.id).attempts[0].reason or ""
    assert told.startswith("cpu-")
    assert told.endswith(" was being ended; pool cpu: Slurm's 1 ended: CANCELLED: by ada (user 1000)")


def test_a_job_that_left_is_not_told_of_the_end_of_a_later_start(elastic: Elastic):
    attempt, node = elastic.running(), elastic.engine.orders[0].node_id
    elastic.report(leaving=True)
    elastic.turn()
    attempt.finish("checkpointed", reason=f"allocation {node} was being ended")
    stopped = replace(elastic.engine.pilots["1"], state=PilotState.PENDING, reason="Suspended")
    elastic.engine.pilots["1"] = stopped
    elastic.turn()
    elastic.engine.run("1")
    elastic.turn()
    elastic.engine.end("1", "CANCELLED", revoked=True)
    elastic.turn()
    told = elastic.job(attempt.claim.job_id).attempts[0].reason or ""
    assert told.endswith(" was stopped: Suspended")


def test_a_node_that_was_started_again_after_all_is_as_administrators_left_it(elastic: Elastic):
    """As Kueue does with a Job that it had stopped."""
    elastic.running()
    node = elastic.engine.orders[0].node_id
    ways = ("closed", "closed_reason", "drain_at")
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()

    def say(word: str, **body: str) -> None:
        answer = elastic.service.person.post(f"/v1/nodes/{node}/{word}", json=body)
        assert answer.status_code == 200, answer.text

    def shown() -> list[Any]:
        found = elastic.service.person.get(f"/v1/nodes/{node}").json()
        return [found[name] for name in ways]

    for word, body, expected in (
        ("cordon", {"reason": "slow disk"}, ["cordoned", "slow disk"]),
        ("uncordon", {}, [None, None]),
        ("drain", {"reason": "new disks", "at": later}, [None, "new disks"]),
        ("drain", {"reason": "new fan"}, ["draining", "new fan"]),
    ):
        say(word, **body)
        before = shown()
        assert before[:2] == expected
        elastic.report(leaving=True)
        assert shown()[0] == "draining"
        elastic.report(leaving=False)
        assert shown() == before
        elastic.report(leaving=True)
        say(word, **(body if "at" not in body else {"reason": "new disks"} | {"at": later}))
        assert shown()[0] == "draining", "nobody can open it while it leaves"
        elastic.report(leaving=False)
        assert shown() == before, "a word that came meanwhile counts, too"


@pytest.mark.slow
def test_what_an_administrator_says_of_a_node_stays(elastic: Elastic):
    elastic.running()
    node = elastic.engine.orders[0].node_id
    with elastic.service.database.read() as session:
        now = database_now(session)

    def shown(end: timedelta) -> tuple[timedelta, str]:
        elastic.engine.run("1", ends_at=now + end)
        elastic.turn()
        found = elastic.service.person.get(f"/v1/nodes/{node}").json()
        return datetime.fromisoformat(found["drain_at"]) - now, found["closed_reason"]

    hour = timedelta(hours=1)
    for end in (3 * hour, 2 * hour):
        drain_in, why = shown(end)
        assert drain_in == end - timedelta(seconds=100)
        assert why.startswith("its time in pool cpu ends at ")
    asked = {"at": (now + hour).isoformat(), "reason": "new disks"}
    assert elastic.service.person.post(f"/v1/nodes/{node}/drain", json=asked).status_code == 200
    assert shown(4 * hour) == (hour, "new disks")
    assert shown(hour)[0] == hour - timedelta(seconds=100)  # it won't be there any longer


def test_a_cordon_keeps_its_reason(elastic: Elastic):
    elastic.running()
    node = elastic.engine.orders[0].node_id
    answer = elastic.service.person.post(f"/v1/nodes/{node}/cordon", json={"reason": "slow disk"})
    assert answer.status_code == 200, answer.text
    with elastic.service.database.read() as session:
        elastic.engine.run("1", ends_at=database_now(session) + timedelta(hours=1))
    elastic.turn()
    assert elastic.service.person.get(f"/v1/nodes/{node}").json()["closed_reason"] == "slow disk"


def test_nothing_starts_on_a_node_that_is_about_to_end(elastic: Elastic):
    job_id = elastic.queued()
    elastic.turn()
    with elastic.service.database.read() as session:
        now = database_now(session)
    elastic.engine.run("1", ends_at=now + timedelta(seconds=1000))
    elastic.turn()
    elastic.engine.run("1", ends_at=now + timedelta(seconds=105))  # it drains in 5 s, a job needs 10 s
    elastic.report()
    elastic.turns.turn()
    elastic.service.scheduler.turn()
    assert elastic.job(job_id).state is JobState.QUEUED


def test_a_time_that_is_too_short_for_any_job_is_a_failure(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    with elastic.service.database.read() as session:
        now = database_now(session)
    elastic.engine.run("1", ends_at=now + timedelta(seconds=105))
    elastic.turn()
    assert elastic.engine.cancelled == ["1"]
    elastic.turn()
    assert "too short" in elastic.pilots[0].reason
    assert len(elastic.engine.orders) == 1


def test_only_its_own_token_uses_a_pilot_s_name(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    name = elastic.engine.orders[0].node_id
    body = {"hostname": "x", "instance": "another", "version": "0", "labels": {"pool": "cpu"}}
    refused = elastic.service.node.put(f"/v1/nodes/{name}", json=body)
    assert (refused.status_code, error_of(refused)["code"]) == (409, "node_name_taken")
    assert elastic.report().status_code == 200


def test_a_report_that_comes_after_the_end_brings_no_node_back(elastic: Elastic):
    elastic.running()
    elastic.engine.end("1", "TIMEOUT", revoked=True)
    elastic.turn()
    name = elastic.engine.orders[0].node_id
    with elastic.service.database.read() as session, pytest.raises(NodeNameTakenError, match="has ended"):
        pilots.check_owner(session, name, bound=name)


def test_nothing_is_decided_by_a_clock_that_has_just_jumped(elastic: Elastic):
    elastic.running()
    clock = elastic.turns._clock
    assert clock.offset is not None
    clock.offset -= 3600
    elastic.later(unneeded_since=3600)
    elastic.queued()
    elastic.turn()
    assert (len(elastic.engine.orders), elastic.engine.cancelled) == (1, [])
    clock.trusted_from = float("-inf")
    elastic.turn()
    assert len(elastic.engine.orders) == 2


def test_a_follower_asks_for_nothing(elastic: Elastic):
    elastic.queued()
    other = PoolTurn(
        Pools(elastic.service.database, elastic.service.settings, "second", elastic.pools.pools, {}, ""),
        elastic.pools.pools[0],
        elastic.engine,
    )
    other.turn()
    assert elastic.engine.orders == []


def test_a_leader_acts_to_the_end_of_its_lease(elastic: Elastic):
    elastic.queued()
    with elastic.service.database.write() as session:
        soon = database_now(session) + timedelta(seconds=elastic.service.settings.leader_lease_s / 4)
        session.execute(update(Leader).values(expires_at=soon))
    elastic.turns.turn()
    assert len(elastic.engine.orders) == 1


def test_people_see_the_pools(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.turn()
    local, pool = elastic.service.person.get("/v1/pools").json()["items"]
    assert (local["name"], local["max"], local["pilots"]) == ("local", None, [])
    assert (pool["states"], pool["max"], pool["error"]) == ({"pending": 1}, 2, None)
    (pilot,) = pool["pilots"]
    assert (pilot["state"], pilot["reason"], pilot["external_id"]) == ("pending", "Priority", "1")
    assert elastic.service.person.get("/v1/pools/cpu").json() == pool
    assert elastic.service.person.get("/v1/pools/gone").status_code == 404


@pytest.mark.slow
def test_a_pool_that_the_file_declares_no_more_is_forgotten(elastic: Elastic):
    attempt = elastic.running()
    elastic.queued()
    elastic.turn()
    gone = Undeclared(replace(elastic.pools, pools=()))
    gone.turn()
    assert [pilot.state for pilot in elastic.pilots] == ["running", "ended"]  # one is a node
    with elastic.service.database.read() as session:
        assert (session.get_one(PoolStatus, "cpu").max, pilots.startable(session)) == (0, [])
    assert elastic.report(1).status_code == 401
    elastic.silent(3600)
    gone.turn()
    assert attempt.beat().status_code == 200
    elastic.service.let_lease_run_out(attempt.claim.attempt_id)
    elastic.service.scheduler.turn()
    gone.turn()
    assert elastic.service.person.get("/v1/pools").json()["items"][1:] == []
    assert elastic.report().status_code == 401


def test_nodes_of_a_pool_that_the_file_declares_no_more_are_not_waited_for(elastic: Elastic):
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.report()
    Undeclared(replace(elastic.pools, pools=())).turn()
    settings = elastic.service.settings
    with elastic.service.database.write() as session:
        assert pilots.coming(session, settings, [], database_now(session)) == ()
        assert pilots.outlooks(session) == ()


def test_a_node_that_is_alive_is_not_lost_however_short_the_start_deadline(service: ServiceDriver):
    elastic = elastic_of(service, start_deadline_s=1)
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.report()
    elastic.silent(service.settings.node_timeout_s - 5)
    elastic.turns.turn()
    assert elastic.pilots[0].leaves is None
