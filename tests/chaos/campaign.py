"""A campaign: jobs run while faults are injected by a schedule; afterwards nothing may be lost."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import pytest

from powermean.contracts.api import Job
from tests.chaos import checks
from tests.chaos.checks import Record, Verdict
from tests.chaos.faults import FAULTS, MOMENTS
from tests.chaos.field import UNANSWERED, Field
from tests.chaos.hits import CLAIM_S, LEASE_S, NODE_S, Hit
from tests.support.cluster import Cluster
from tests.support.embedded_service import until
from tests.support.small_disk import small_disk
from tests.support.tiny_spec import tiny_spec

IN_FLIGHT = 5  # jobs that run or wait at a time
PAUSES_S = (0.2, 3.0)  # between faults: many last longer, so that they overlap
NOTHING_TO_HIT_S = 3.0  # for the moment to come, or for something to be there that can be hit
STUCK_S = 180.0  # longest that a job that runs shows no change
DISK = 400 * 2**20  # bytes; with less than 128 MiB left it counts as full
JOB_S = 600.0  # for a job to end when there are no more faults, on a busy machine
AHEAD = 1.5  # jobs
STEPS = 10
COMMON = {
    "training": {"steps": STEPS, "prompts_per_step": 32, "minibatches": 2, "epochs": 2},
    "evaluation": {"every": 4, "problems": 25},
    "checkpoints": {"every": 2},
    "max_restarts": 100,  # in a row without a checkpoint, which faults may well cause
}
KINDS: tuple[dict[str, Any], ...] = (
    {"name": "all weights"},
    {"name": "through the store", "rollout": {"group_size": 8, "max_new_tokens": 4, "publish": "store"}},
    {"name": "adapter", "model": {"folder": "tiny", "lora": {"rank": 8, "alpha": 16}}},
)


# Stand-ins go before the real packages; the working folder, which would be first of all, counts for nothing.
ROOT = Path(__file__).resolve().parents[2]
STAND_INS = {
    "PYTHONPATH": f"{Path(__file__).parent / 'stand_ins'}:{ROOT}",
    "PYTHONSAFEPATH": "1",
}


SETTINGS = {
    "POWERMEAN_LEASE_S": str(LEASE_S),
    "POWERMEAN_BEAT_S": "1",
    "POWERMEAN_CLAIM_S": str(CLAIM_S),
    "POWERMEAN_NODE_TIMEOUT_S": str(NODE_S),
    "POWERMEAN_LEADER_LEASE_S": "4",
    "POWERMEAN_MIN_RUN_S": "0",
    "POWERMEAN_STOP_GRACE_S": "30",
}


def spec(kind: Mapping[str, Any]) -> dict[str, object]:
    return tiny_spec("tiny", **(COMMON | dict(kind)))


@dataclass(frozen=True)
class Injected:
    """One fault of the schedule that hit something."""

    number: int
    kind: str
    at_s: float
    hit: Hit
    moment: str  # what the attempt did that it was aimed at; "" if it was aimed at none


@dataclass
class Campaign:
    """Runs the schedule of a seed. `tell` gets a line for everything that happens."""

    folder: Path
    model_root: Path | None  # with the tiny model; None: stand-ins train, which need no model
    seed: int
    faults: int
    jobs: int
    kinds: int = len(KINDS)
    only: tuple[str, ...] = ()  # faults by name; all if empty
    tell: Callable[[str], None] = print
    injected: list[Injected] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    _submitting: "Future[Job] | None" = None
    judged: int = 0  # jobs
    reference: dict[str, Record] = field(default_factory=dict)  # of undisturbed jobs, by name

    def run(self) -> Verdict:
        self._began = time.monotonic()
        with ExitStack() as stack:
            cluster = self._cluster(stack)
            self._run_undisturbed(cluster)
            field = Field(cluster, Random(self.seed))
            stack.callback(field.close)
            field.watch()
            self._inject(field)
            self._settle(field)
            self._judge(field)
            left = cluster.stop()
            self.verdict.add("processes left after the stop", [str(pid) for pid in sorted(left)])
        return self.verdict

    def _cluster(self, stack: ExitStack) -> Cluster:
        cluster = Cluster(
            self.folder,
            self.model_root or self.folder,
            settings=SETTINGS,
            node_settings=STAND_INS if self.model_root is None else {},
        )
        for name in (*(node.id for node in cluster.nodes), "artefacts"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
            with suppress(pytest.skip.Exception):  # no small disks without root: those faults hit nothing
                stack.enter_context(small_disk(self.folder / name, DISK))
        stack.callback(cluster.stop)
        cluster.start()
        self._say(
            f"up: {len(cluster.servers)} servers, {len(cluster.nodes)} nodes; logs in {self.folder / 'logs'}"
        )
        return cluster

    def _run_undisturbed(self, cluster: Cluster) -> None:
        """What each kind of job leaves when nothing happens to it."""
        pairs = [(kind, cluster.client.create_job(spec(kind)).id) for kind in KINDS[: self.kinds]]
        ids = self._first = [job_id for _, job_id in pairs]
        for job_id in ids:
            until(
                lambda job_id=job_id: cluster.client.get_job(job_id).state.final, JOB_S, f"{job_id} has ended"
            )
            job = cluster.client.get_job(job_id)
            assert job.state == "finished", job.error
        self._say(f"{len(ids)} undisturbed jobs have finished")
        self.reference = {str(kind["name"]): checks.record(cluster, job_id) for kind, job_id in pairs}

    def _inject(self, field: Field) -> None:
        """The schedule: what is injected when is drawn from the seed alone, what it hits is what is there."""
        schedule = self._schedule()
        kind, moment, pause = next(schedule)
        due = time.monotonic() + pause
        while len(self.injected) < self.faults or len(field.jobs) < self.jobs:
            field.tick()
            self._watch(field)
            self._submit(field)
            now = time.monotonic()
            if len(self.injected) < self._most(field) and now >= due:
                late = now > due + NOTHING_TO_HIT_S
                field.aim = next((job for job, doing in field.doing().items() if doing == moment), None)
                hit = None
                with suppress(ProcessLookupError):  # what was to be hit has just ended
                    hit = FAULTS[kind](field) if field.aim is not None or late else None
                if hit is not None:
                    self._note(kind, hit, field)
                if hit is not None or late:
                    kind, moment, pause = next(schedule)
                    due = now + pause
            time.sleep(0.02)

    def _most(self, field: Field) -> int:
        """How many there may have been by now: they are spread over the jobs, however slow those are."""
        ended = len(field.jobs) - len(field.unfinished)
        return min(self.faults, int((ended + AHEAD) * self.faults / self.jobs))

    def _schedule(self) -> Iterator[tuple[str, str, float]]:
        """Every kind in turn, in another order each time; the moment to wait for; the pause before."""
        chance = Random(self.seed)
        kinds = sorted(self.only or FAULTS)
        while True:
            for kind in chance.sample(kinds, len(kinds)):
                yield kind, chance.choice(MOMENTS), chance.uniform(*PAUSES_S)

    def _submit(self, field: Field) -> None:
        """Keep some in flight: as many as were asked for, and more while there are faults left."""
        wanted = len(field.jobs) < self.jobs or len(self.injected) < self.faults
        if wanted and len(field.unfinished) < IN_FLIGHT and self._submitting is None:
            kind = KINDS[len(field.jobs) % self.kinds]  # a frozen server must not hold up this thread
            self._submitting = field.start(lambda client: client.create_job(spec(kind)))
        if self._submitting is not None and self._submitting.done():
            with suppress(*UNANSWERED):  # if it was accepted all the same, `_adopt` finds it
                job = self._submitting.result()
                field.jobs[job.id] = job
            self._submitting = None

    def _adopt(self, field: Field) -> None:
        """Jobs that were accepted, though the answer was lost, count as all others do."""
        for one in field.cluster.client.list_jobs(limit=200).items:
            if one.id not in field.jobs and one.id not in self._first:
                field.jobs[one.id] = field.cluster.client.get_job(one.id)

    def _note(self, kind: str, hit: Hit, field: Field) -> None:
        number = len(self.injected) + 1
        at_s, doing = time.monotonic() - self._began, field.doing().get(field.aim or "", "")
        self.injected.append(Injected(number, kind, at_s, hit, doing))
        finished = len(field.jobs) - len(field.unfinished)
        when = f" ({doing})" if doing else ""
        self._say(f"{number:3} {kind}{when}: {hit.what} [{finished} of {len(field.jobs)} jobs have ended]")

    def _watch(self, field: Field) -> None:
        """Note what shows no change for too long."""
        now = time.monotonic()
        seen: dict[str, tuple[object, float]] = self.__dict__.setdefault("_seen", {})
        for job in field.unfinished:
            state = (job.state, job.attempt, job.step, job.phase)
            before = seen.get(job.id)
            if before is None or before[0] != state:
                seen[job.id] = (state, now)
            elif job.state == "running" and now - before[1] > STUCK_S:
                self.verdict.add("waits without a bound", [f"{job.id}: {state} for {STUCK_S:.0f} s"])
                seen[job.id] = (state, now)

    def _settle(self, field: Field) -> None:
        """Undo what is left to be undone, and wait until every job has ended, each with a deadline."""
        self._say("no more faults")
        while not field.calm or self._submitting is not None:
            field.tick()
            self._submit(field)
            time.sleep(0.1)
        self._adopt(field)
        deadline = time.monotonic() + JOB_S
        left = len(field.unfinished)
        while field.unfinished or not field.calm:
            field.tick()
            self._watch(field)
            if len(field.unfinished) < left:
                left = len(field.unfinished)
                deadline = time.monotonic() + JOB_S
                self._say(f"{left} jobs are left")
            if time.monotonic() > deadline:
                stuck = [f"{one.id}: {one.state} {one.phase}" for one in field.unfinished]
                self.verdict.add("waits without a bound", stuck or ["undoing the last faults"])
                return
            time.sleep(0.1)

    def _judge(self, field: Field) -> None:
        cluster, verdict = field.cluster, self.verdict
        jobs = {job_id: cluster.client.get_job(job_id) for job_id in field.jobs}
        self.judged = len(jobs)
        verdict.add("jobs lost", checks.jobs_lost(jobs))
        for job in jobs.values():
            verdict.add("metric rows doubled", checks.rows_doubled(cluster, job))
            if job.state == "finished":
                left, expected = checks.record(cluster, job.id), self.reference[job.name]
                verdict.add("metric rows lost", checks.rows_lost(job, left.rows, expected.rows))
                verdict.add("runs with other bits", checks.other_bits(job, left, expected))
        deadline = time.monotonic() + checks.SETTLED_S
        for kind, find in {
            "slots held": lambda: checks.slots_held(cluster),
            "processes left": lambda: checks.processes_left(cluster),
            "shared memory left": lambda: checks.shared_memory_left(jobs),
            "messages owed": lambda: checks.messages_owed(cluster),
        }.items():
            while (wrong := find()) and time.monotonic() < deadline:
                time.sleep(0.5)
            verdict.add(kind, wrong)
        verdict.add("waits without a bound", field.problems)

    def _say(self, text: str) -> None:
        self.tell(f"{time.monotonic() - self._began:6.1f} s  {text}")
