"""Whatever nodes, people and the scheduler do, in whatever order: the promises about jobs hold."""

import tempfile
from collections import defaultdict
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import select, update

from powermean.contracts.api import Job as JobView
from powermean.contracts.api import JobState
from powermean.contracts.attempts import ClaimWithSecrets
from powermean.contracts.names import RANK_LOST, node_queue
from server.db.models import Allocation, Attempt, AttemptMember, Checkpoint, Job, JobEvent, Outbox
from server.db.session import database_now
from server.jobs.attempts import order_by_rule, order_stop
from server.jobs.events import lock_job
from server.jobs.states import TRANSITIONS
from server.settings import Settings
from tests.support.law_settings import at_most
from tests.support.service_driver import ADMIN_KEY, NODE_TOKEN, AttemptDriver, ServiceDriver, example_result

SLOTS = {"node-1": 1, "node-2": 2}
ERROR = {"code": "trainer_killed", "message": "killed"}
LOST = {"code": RANK_LOST, "message": "rank 1 is gone"}
LIVE = (JobState.STARTING, JobState.RUNNING)


CLAIMED = AttemptMember.claimed_at.is_not(None)
Place = tuple[str, str]  # an attempt, and one of its nodes


def nodes_of(job: JobView) -> list[str]:
    """The nodes of the job's newest attempt."""
    parts = job.attempts[-1].allocations if job.attempts else ()
    return [part.node_id for part in parts if part.role == "trainer"]


class JobLife(RuleBasedStateMachine):
    """A small cluster under arbitrary events."""

    @initialize()
    def start(self) -> None:
        self.folder = tempfile.TemporaryDirectory()
        path = Path(self.folder.name)
        self.service = ServiceDriver(
            Settings(
                database_url=f"sqlite:///{path / 'server.db'}",
                artefacts_url=f"file://{path / 'artefacts'}",
                secrets_dir=path / "secrets",
                migrate=True,
                scheduler=False,
                restart_backoff_s=0,
                bootstrap_admin_key=ADMIN_KEY,
                bootstrap_node_token=NODE_TOKEN,
            )
        )
        self.jobs: list[str] = []
        self.parts: dict[Place, AttemptDriver] = {}  # claimed, whatever became of them
        self.alive: set[Place] = set()  # whose processes are still there
        self.over: set[Place] = set()  # who said that theirs are gone
        self.committed: dict[str, int] = defaultdict(int)
        for node in SLOTS:
            self.report(node)
        for nodes in (1, 2):
            self.submit(restarts=2, checked=True, nodes=nodes)
        self.schedule(claims=True)

    def teardown(self) -> None:
        if hasattr(self, "service"):
            self.service.close()
            self.folder.cleanup()

    @precondition(lambda self: len(self.jobs) < 5)
    @rule(restarts=st.integers(0, 2), checked=st.booleans(), nodes=st.sampled_from([1, 2]))
    def submit(self, restarts: int, checked: bool, nodes: int = 1) -> None:
        job_id = self.service.submit(max_restarts=restarts, resources={"nodes": nodes})
        self.jobs.append(job_id)
        if checked:
            self.service.validate(job_id)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), good=st.sampled_from([True, True, True, False]))
    def validate(self, data: st.DataObject, good: bool) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        self.service.validate(job_id, *([] if good else [ERROR]))

    @rule(node=st.sampled_from(sorted(SLOTS)))
    def report(self, node: str) -> None:
        """Later than any claim that it does not know of."""
        with self.service.database.write() as session:
            past = database_now(session) - timedelta(seconds=2 * self.service.settings.lease_s)
            session.execute(update(AttemptMember).values(claimed_at=past).where(CLAIMED))
        here = sorted(attempt_id for attempt_id, where in self.alive if where == node)
        self.service.report(node, cpu_slots=SLOTS[node], running=tuple(here))

    @rule(claims=st.booleans())
    def schedule(self, claims: bool) -> None:
        self.service.scheduler.turn()
        for job in [self.service.job(job_id) for job_id in self.jobs]:
            if claims and job.state is JobState.STARTING:
                for node in nodes_of(job):
                    self.claim_current(job, node)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), node=st.sampled_from(sorted(SLOTS)))
    def claim(self, data: st.DataObject, node: str) -> None:
        self.claim_current(self.service.job(data.draw(st.sampled_from(self.jobs))), node)

    def claim_current(self, job: JobView, node: str) -> None:
        place = f"{job.id}.{job.attempt}", node
        answer = self.service.node.post(f"/v1/attempts/{place[0]}/claim", json={"node_id": node})
        waited_for = job.state in LIVE and node in nodes_of(job) and place not in self.parts
        assert (answer.status_code == 200) == waited_for
        if waited_for:
            claim = ClaimWithSecrets.model_validate_json(answer.content).claim
            self.parts[place] = AttemptDriver(self.service.anyone, claim)
            self.alive.add(place)

    def may_write(self, place: Place) -> bool:
        part = self.parts[place]
        job = self.service.job(part.claim.job_id)
        running = job.state is JobState.RUNNING and job.attempt == part.claim.number
        return running and place not in self.over

    @precondition(lambda self: self.parts)
    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        place = data.draw(st.sampled_from(sorted(self.parts)))
        assert self.parts[place].beat().status_code == (200 if self.may_write(place) else 409)

    @precondition(lambda self: self.parts)
    @rule(data=st.data(), step=st.integers(1, 20))
    def commit(self, data: st.DataObject, step: int) -> None:
        place = data.draw(st.sampled_from(sorted(self.parts)))
        part, allowed = self.parts[place], self.may_write(place)
        if part.claim.node_rank > 0:
            assert part.commit(step).status_code == 403
            return
        assert part.commit(step).status_code == (204 if allowed else 409)
        if allowed:
            job_id = part.claim.job_id
            self.committed[job_id] = max(self.committed[job_id], step)

    @precondition(lambda self: self.parts)
    @rule(
        data=st.data(),
        outcome=st.sampled_from(["finished", "failed", "retryable", "lost", "checkpointed", "cancelled"]),
    )
    def finish(self, data: st.DataObject, outcome: str) -> None:
        place = data.draw(st.sampled_from(sorted(self.parts)))
        part, allowed = self.parts[place], self.may_write(place)
        body: dict[str, object] = {}
        if outcome == "finished" and part.claim.node_rank == 0:
            body = {"result": example_result(part.claim.job_id)}
        elif outcome in ("failed", "retryable", "lost"):
            body = {"error": LOST if outcome == "lost" else ERROR, "retryable": outcome != "failed"}
        answer = part.finish("failed" if "error" in body else outcome, **body)
        assert answer.status_code in ((204,) if allowed else (204, 409))  # 204: the same word again
        self.alive.discard(place)
        self.over.add(place)

    @precondition(lambda self: self.alive)
    @rule(data=st.data(), dies=st.booleans())
    def fall_silent(self, data: st.DataObject, dies: bool) -> None:
        place = data.draw(st.sampled_from(sorted(self.alive)))
        self.service.let_lease_run_out(*place)
        if dies:
            self.alive.discard(place)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def nobody_claims_in_time(self, data: st.DataObject) -> None:
        job = self.service.job(data.draw(st.sampled_from(self.jobs)))
        attempt_id = f"{job.id}.{job.attempt}"
        absent = [node for node in nodes_of(job) if (attempt_id, node) not in self.parts]
        if job.state in LIVE and absent:
            self.service.let_lease_run_out(attempt_id, *absent)

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        before = self.service.job(job_id).state
        answer = self.service.person.post(f"/v1/jobs/{job_id}/cancel").json()
        if before is JobState.RUNNING:
            assert answer["cancel_requested"]
        elif not before.final:
            assert answer["state"] == "cancelled"
        else:
            assert answer["state"] == before

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), what=st.sampled_from(["pause", "resume"]))
    def pause_or_resume(self, data: st.DataObject, what: str) -> None:
        before = self.service.job(data.draw(st.sampled_from(self.jobs)))
        answer = self.service.person.post(f"/v1/jobs/{before.id}/{what}")
        finishing = before.state is JobState.RUNNING and before.attempts[-1].order_cause == "limit"
        ending = before.state.final or (what == "pause" and (before.cancel_requested or finishing))
        assert answer.status_code == (409 if ending else 200)
        if not ending:
            after = JobView.model_validate(answer.json())
            assert (after.pause_requested or after.state is JobState.PAUSED) == (what == "pause")

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def give_way(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        with self.service.database.write() as session:
            order_stop(session, lock_job(session, job_id), "preempted", database_now(session))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data(), order=st.sampled_from(["finish", "cancel"]))
    def reach_a_limit(self, data: st.DataObject, order: Literal["finish", "cancel"]) -> None:
        job_id = data.draw(st.sampled_from(self.jobs))
        with self.service.database.write() as session:
            order_by_rule(session, lock_job(session, job_id), order, "a limit", database_now(session))

    @invariant()
    def promises_hold(self) -> None:
        if not hasattr(self, "service"):
            return
        with self.service.database.read() as session:
            jobs = {job.id: job for job in session.execute(select(Job)).scalars()}
            attempts = list(session.execute(select(Attempt)).scalars())
            parts = list(session.execute(select(Allocation).order_by(Allocation.id)).scalars())
            owed = list(session.execute(select(Outbox).where(Outbox.done_at.is_(None))).scalars())
            events = list(session.execute(select(JobEvent).order_by(JobEvent.seq)).scalars())
            latest = defaultdict(int)
            for checkpoint in session.execute(select(Checkpoint)).scalars():
                latest[checkpoint.job_id] = max(latest[checkpoint.job_id], checkpoint.step)
        assert set(jobs) == set(self.jobs), "no accepted job is lost"
        self.check_attempts(jobs, attempts)
        self.check_places([part for part in parts if part.released_at is None])
        self.check_messages(jobs, owed, [part for part in parts if part.role == "trainer"])
        self.check_events(jobs, events)
        assert {job: latest[job] for job in self.jobs} == {job: self.committed[job] for job in self.jobs}

    @staticmethod
    def check_attempts(jobs: dict[str, Job], attempts: list[Attempt]) -> None:
        living = defaultdict(list)
        for attempt in attempts:
            if attempt.state in ("starting", "running"):
                living[attempt.job_id].append(attempt)
        for job in jobs.values():
            state = JobState(job.state)
            if state in (JobState.STARTING, JobState.RUNNING):
                (current,) = living[job.id]
                assert (current.number, current.state) == (job.attempt, job.state)
            else:
                assert living[job.id] == []
            assert not (job.pause_requested and (state.final or state is JobState.PAUSED))
            assert (job.finished_at is not None) == state.final
            assert (job.error is not None) == (state is JobState.FAILED)
            assert (job.result is not None) == (state is JobState.FINISHED)

    def check_places(self, held: list[Allocation]) -> None:
        on_node = defaultdict(set)
        for allocation in held:
            on_node[allocation.node_id].add(allocation.attempt_id)
        for node, holders in on_node.items():
            assert len(holders) <= SLOTS[node]
        places = {(part.attempt_id, part.node_id) for part in held}
        assert self.alive <= places, "what still runs keeps its place"

    def check_messages(self, jobs: dict[str, Job], owed: list[Outbox], parts: list[Allocation]) -> None:
        """Each node of a live attempt is told of it until it has claimed its part."""
        told = sorted((message.subject, message.queue or "") for message in owed)
        waiting = [(job.id, "") for job in jobs.values() if job.state == JobState.VALIDATING]
        live = {f"{job.id}.{job.attempt}" for job in jobs.values() if job.state in LIVE}
        places = {(part.attempt_id, part.node_id) for part in parts if part.attempt_id in live}
        waiting += [(attempt, node_queue(node)) for attempt, node in places - self.parts.keys()]
        assert told == sorted(waiting)

    @staticmethod
    def check_events(jobs: dict[str, Job], events: list[JobEvent]) -> None:
        told = defaultdict(list)
        for event in events:
            told[event.job_id].append(event)
        for job in jobs.values():
            assert [event.seq for event in told[job.id]] == list(range(1, job.seq + 1))
            states = [JobState(event.data["state"]) for event in told[job.id] if event.kind == "state"]
            assert states[-1] == job.state
            for before, after in pairwise(states):
                assert after == before or after in TRANSITIONS[before]


TestJobLife = pytest.mark.slow(JobLife.TestCase)
TestJobLife.settings = settings(
    at_most(10), stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)
