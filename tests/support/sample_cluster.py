"""A cluster with a history, written straight into the database: nodes, projects, jobs, who held what when."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from random import Random
from types import MappingProxyType
from typing import Any

from sqlalchemy.orm import Session

from powermean.contracts.attempts import NodeReport
from powermean.contracts.job import JobSpec
from powermean.contracts.phases import (
    CHECKPOINTING,
    EVALUATING,
    PREPARING_MODEL,
    PUBLISHING,
    SAMPLING,
    SCORING,
    STARTING_TRAINER,
    UPDATING,
    in_step,
)
from server.cluster import samples
from server.cluster.inventory import FAST
from server.db.models import Allocation, Attempt, Job, JobEvent, Node, Person, Project
from server.db.session import database_now
from server.jobs.demand import demand_of
from tests.support.service_driver import example_spec

BEAT = timedelta(seconds=10)
STEP = ((SAMPLING, 9), (SCORING, 1), (UPDATING, 6), (PUBLISHING, 2))  # beats of each activity
PROJECTS = {  # person, guaranteed GPUs, the most
    "vision": ("Ada Okafor", 12, 20),
    "language": ("Bo Lindqvist", 8, 16),
    "agents": ("Chi Tan", 8, None),
    "archive": ("Dana Ruiz", 4, 4),
}


@dataclass
class Cluster:
    """Writes rows; `now` is when the picture is taken."""

    session: Session
    now: datetime
    jobs: int = 0
    people: dict[str, str] = field(default_factory=dict)  # project -> its person's id

    def ago(self, **time: float) -> datetime:
        return self.now - timedelta(**time)

    def project(self, name: str, person: str = "Ada", quota: int = 0, limit: int | None = None) -> None:
        """A project with one person."""
        made = Person(id=f"per-{name}", name=person, kind="person", active=True, created_at=self.ago(days=90))
        self.session.add(made)
        row = self.session.get(Project, name)
        if row is None:
            row = Project(id=name, title=name.capitalize(), created_at=self.ago(days=90))
            self.session.add(row)
        row.gpu_quota, row.gpu_limit = quota, limit
        self.people[name] = made.id
        self.session.flush()

    def node(
        self,
        name: str,
        *,
        gpus: int = 0,
        cpu_slots: int = 1,
        alive: bool = True,
        use: Mapping[int, tuple[float, int]] = MappingProxyType({}),
        unhealthy: Mapping[int, str] = MappingProxyType({}),
        **changes: Any,
    ) -> None:
        """A node, with what it reported last; `use`: utilisation and MiB of GPUs by number; `changes` are
        columns of its row."""
        kinds = [
            {"uuid": f"GPU-{name}-{i}", "name": "H100", "memory_mb": 81_559, "unhealthy": unhealthy.get(i)}
            | ({"utilisation": use[i][0], "memory_used_mb": use[i][1]} if i in use else {})
            for i in range(gpus)
        ]
        report = NodeReport.model_validate(
            {
                "hostname": f"{name}.example",
                "instance": name,
                "gpus": kinds,
                "cpu_slots": cpu_slots,
                "engines": ("transformers", "vllm"),
                "version": "0.1.0",
            }
        )
        seen = self.now + timedelta(minutes=10) if alive else self.ago(hours=2)  # long enough for a test
        data = report.model_dump(mode="json", exclude=FAST)
        self.session.add(Node(id=name, instance=name, report=data, seen_at=seen, **changes))
        if use:
            samples.record(self.session, name, report, seen)

    def job(self, project: str, state: str = "running", name: str | None = None, **changes: Any) -> Job:
        """A job of the project's person; `changes` are columns of it."""
        self.jobs += 1
        gpus = changes.pop("gpus", 1)
        resources = {"gpus": min(gpus, 1), "placement": "split" if gpus > 1 else "colocated"}
        name = name or f"{project}-{self.jobs}"
        spec = JobSpec.model_validate(example_spec(name=name, resources=resources, project=project))
        values: dict[str, Any] = {
            "id": f"job-{self.jobs:04}",
            "name": name,
            "state": state,
            "spec": spec.model_dump(mode="json"),
            "demand": demand_of(spec),
            "algorithm": "pmpo",
            "total_steps": 200,
            "spec_sha256": "0" * 64,
            "created_by": self.people[project],
            "project_id": project,
            "created_at": self.ago(hours=30),
            "seq": 0,
        }
        made = Job(**(values | changes))
        self.session.add(made)
        self.session.flush()
        return made

    def attempt(
        self,
        job: Job,
        start: datetime,
        end: datetime | None,
        *parts: tuple[str, tuple[str, ...]],
        engine: str | None = None,
    ) -> Attempt:
        """An attempt that holds these (node, GPUs), with none a CPU slot, until `end`."""
        job.attempt += 1
        made = Attempt(
            id=f"{job.id}.{job.attempt}",
            job_id=job.id,
            number=job.attempt,
            state="running" if end is None else "ended",
            outcome=None if end is None else "finished",
            created_at=start,
            claimed_at=start + timedelta(seconds=2),
            lease_expires_at=self.now + timedelta(hours=1),
            ended_at=end,
        )
        self.session.add(made)
        self.session.flush()
        for place, (node, gpus) in enumerate(parts):
            role = "trainer" if place == 0 else "rollout"
            part = Allocation(attempt_id=made.id, role=role, node_id=node, gpu_uuids=list(gpus))
            part.released_at, part.engine_id = end, engine if place else None
            self.session.add(part)
        self.session.flush()
        return made

    def phase(self, job: Job, at: datetime, phase: str) -> None:
        """What the attempt said that it does."""
        job.seq += 1
        data = {"phase": phase}
        self.session.add(JobEvent(job_id=job.id, seq=job.seq, kind="state", data=data, created_at=at))

    def train(self, job: Job, start: datetime, end: datetime) -> None:
        """The phases of an attempt from beat to beat, and the steps that it got through."""
        at, step, beats = start, 0, 0
        self.phase(job, at, PREPARING_MODEL)
        self.phase(job, at + BEAT, STARTING_TRAINER)
        at += 4 * BEAT
        while at < end:
            step += 1
            shown = [*STEP, *([(EVALUATING, 3), (CHECKPOINTING, 1)] if step % 5 == 0 else [])]
            for activity, length in shown:
                beats = length if activity != SAMPLING else length + job.total_steps % 4
                if at < end:
                    self.phase(job, at, in_step(step, job.total_steps, activity))
                    job.phase = in_step(step, job.total_steps, activity)
                at += beats * BEAT
        job.step = min(job.total_steps, step)


def opened(session: Session) -> Cluster:
    """A picture of now."""
    return Cluster(session, database_now(session))


def busy(session: Session) -> Cluster:
    """4 nodes with 8 GPUs and one with CPU slots; 4 projects, one of them `default`'s neighbours, 30 jobs."""
    chance, cluster = Random(3), opened(session)
    for name, (person, quota, limit) in PROJECTS.items():
        cluster.project(name, person, quota, limit)
    for number in range(1, 5):
        drain = {"ordered_state": "draining", "ordered_state_reason": "new driver"} if number == 4 else {}
        used = {i: (float(chance.randint(35, 99)), chance.randint(20_000, 76_000)) for i in range(8)}
        used |= dict.fromkeys((6, 7), (0.0, 420)) if number > 2 else {7: (0.0, 420)}
        broken = {7: "Xid 79: the GPU has fallen off the bus"} if number == 3 else {}
        cluster.node(f"gpu-{number}", gpus=8, cpu_slots=0, use=used, unhealthy=broken, **drain)
    cluster.node("cpu-1", cpu_slots=4)
    turns = ["vision", "language", "vision", "agents", "language", "vision"]
    places = [(f"gpu-{n}", f"GPU-gpu-{n}-{i}") for n in range(1, 5) for i in range(8)]
    for place in range(0, 30, 2):  # pairs of GPUs, some with one job, some with two
        node, first = places[place]
        second = places[place + 1][1]
        project = turns[(place // 2) % len(turns)]
        if place % 8 == 6:
            _one_after_the_other(cluster, chance, project, node, (first,))
            continue
        start = cluster.ago(minutes=chance.randint(30, 900))
        job = cluster.job(
            project, gpus=2, total_steps=200 + place, started_at=start, last_reward=chance.random()
        )
        job.last_p = round(0.8 + 0.2 * chance.random(), 3)
        cluster.attempt(job, start, None, (node, (first,)), (node, (second,)))
        cluster.train(job, max(start, cluster.ago(minutes=80)), cluster.now)
    cpu = cluster.job("archive", gpus=0, started_at=cluster.ago(minutes=50))
    cluster.attempt(cpu, cluster.ago(minutes=50), None, ("cpu-1", ()), ("cpu-1", ()))
    cluster.train(cpu, cluster.ago(minutes=50), cluster.now)
    for number, project in enumerate(("language", "agents", "vision", "agents", "archive", "language")):
        waits = cluster.ago(minutes=40 - 6 * number)
        cluster.job(project, "queued", gpus=1 + number % 2, queued_at=waits, created_at=waits,
                    priority="high" if number == 0 else "normal")  # fmt: skip
    return cluster


def _one_after_the_other(
    cluster: Cluster, chance: Random, project: str, node: str, gpus: tuple[str, ...]
) -> None:
    """Ended jobs with gaps between them, back to a day ago; the last one still runs."""
    end: datetime | None = None
    start = cluster.ago(minutes=chance.randint(5, 40))
    for _ in range(5):
        job = cluster.job(project, "running" if end is None else "finished", started_at=start)
        cluster.attempt(job, start, end, (node, gpus), (node, gpus))
        cluster.train(job, max(start, cluster.ago(minutes=80)), end or cluster.now)
        if end is not None:
            job.phase, job.finished_at, job.step = None, end, job.total_steps
        end = start - timedelta(minutes=chance.randint(3, 45))
        start = end - timedelta(minutes=chance.randint(40, 300))
