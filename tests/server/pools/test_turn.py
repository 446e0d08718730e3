"""A pool's turns: what is asked for, by whom and when, with an engine that does as the test says."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update

from powermean.contracts.api import JobState
from powermean.contracts.pools import Shape
from powermean.contracts.revisions import NEWEST
from server.cluster import pilots
from server.db.models import ApiKey, Leader, Pilot, PoolStatus
from server.db.session import database_now
from server.pools.backend import PilotState
from server.pools.turn import Pools, PoolTurn, Undeclared
from tests.support.elastic import ON_POOL, Elastic, elastic_of
from tests.support.service_driver import ServiceDriver

pytestmark = pytest.mark.slow


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
