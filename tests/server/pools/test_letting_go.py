"""Nodes that are let go, drain or fall silent, and what administrators say of them meanwhile."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import update

from powermean.contracts.api import JobState
from server.db.models import Node
from server.db.session import database_now
from server.pools import life
from server.pools.backend import PilotState
from server.settings import Settings
from tests.support.elastic import Elastic, elastic_of
from tests.support.service_driver import ServiceDriver


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Ten seconds of a node are of use to a job."""
    return settings.model_copy(update={"min_run_s": 10.0})


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


@pytest.mark.slow
def test_a_node_that_is_alive_is_not_lost_however_short_the_start_deadline(service: ServiceDriver):
    elastic = elastic_of(service, start_deadline_s=1)
    elastic.queued()
    elastic.turn()
    elastic.engine.run("1")
    elastic.report()
    elastic.silent(service.settings.node_timeout_s - 5)
    elastic.turns.turn()
    assert elastic.pilots[0].leaves is None


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_cordon_keeps_its_reason(elastic: Elastic):
    elastic.running()
    node = elastic.engine.orders[0].node_id
    answer = elastic.service.person.post(f"/v1/nodes/{node}/cordon", json={"reason": "slow disk"})
    assert answer.status_code == 200, answer.text
    with elastic.service.database.read() as session:
        elastic.engine.run("1", ends_at=database_now(session) + timedelta(hours=1))
    elastic.turn()
    assert elastic.service.person.get(f"/v1/nodes/{node}").json()["closed_reason"] == "slow disk"


@pytest.mark.slow
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
