"""What the faults act on: the cluster, what its jobs do, and what has to be undone later."""

import heapq
import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import TypeVar

from powermean import ApiError, Client, ServerUnreachableError
from powermean.contracts.api import Job
from powermean.contracts.phases import PREPARING_MODEL, read_step
from powermean.processes import ProcessId
from tests.support.cluster import Cluster, Node
from tests.support.embedded_service import command_line
from tests.support.programs import Program
from worker.attempt_dir import MARK, AttemptDir

T = TypeVar("T")
LOOK_S = 0.1  # between looks at the jobs
KEEPER_PAUSE_S = 1.0
ASK_S = 120.0  # for a request of a fault to be accepted: servers may be dead or frozen meanwhile
UNANSWERED = (ApiError, ServerUnreachableError)


@dataclass
class Field:
    """The cluster with its jobs. Only the main thread starts processes, and only it calls `tick`."""

    cluster: Cluster
    chance: Random
    jobs: dict[str, Job] = field(default_factory=dict)  # as last seen, by id, in order of submission
    closed_nodes: set[str] = field(default_factory=set)
    away: set[str] = field(default_factory=set)  # programs that a fault has ended and will start again
    restarts: list[str] = field(default_factory=list)  # programs that ended by themselves
    aim: str | None = None  # the job that is in the moment that the next fault waits for
    problems: list[str] = field(default_factory=list)  # of the harness: what could not be undone or asked
    _later: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)
    _asking: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(8))
    _asked: list["Future[None]"] = field(default_factory=list)
    _over: Event = field(default_factory=Event)

    def watch(self) -> None:
        """Look at the unfinished jobs from now on, in a thread of its own."""
        Thread(target=self._look_on, name="watch", daemon=True).start()

    def _look_on(self) -> None:
        client = self.cluster.client
        while not self._over.wait(LOOK_S):
            for job in [job for job in self.jobs.values() if not job.state.final]:
                with suppress(*UNANSWERED):
                    self.jobs[job.id] = client.get_job(job.id)

    def close(self) -> None:
        self._over.set()
        self._asking.shutdown(wait=False, cancel_futures=True)

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do this in the main thread after so long."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), action))

    def tick(self) -> None:
        """Do what is due."""
        while self._later and self._later[0][0] <= time.monotonic():
            heapq.heappop(self._later)[2]()
        self._keep()

    def take_away(self, program: Program, seconds: float) -> None:
        """Kill it; it comes back after so long."""
        program.kill()
        self.bring_back(program, seconds)

    def bring_back(self, program: Program, seconds: float) -> None:
        """Start a program that has ended, after so long."""

        def start() -> None:
            self.away.discard(program.name)
            if not program.alive:
                program.start()

        self.away.add(program.name)
        self.later(seconds, start)

    def _keep(self) -> None:
        """As systemd does: start what has ended by itself, e.g. a server without a database."""
        cluster = self.cluster
        workers = [node.worker for node in cluster.nodes]
        for program in (*(server.program for server in cluster.servers), *workers, cluster.redis):
            if not program.alive and program.name not in self.away:
                self.restarts.append(program.name)
                self.bring_back(program, KEEPER_PAUSE_S)

    def ask(self, what: str, request: Callable[[Client], object]) -> None:
        """Make a request, in a thread of its own, until a server has answered it."""
        self._asked.append(self._asking.submit(self._ask, what, request))

    def start(self, request: Callable[[Client], T]) -> "Future[T]":
        """Make a request once, in a thread of its own."""
        return self._asking.submit(lambda: request(self.cluster.client))

    def _ask(self, what: str, request: Callable[[Client], object]) -> None:
        deadline = time.monotonic() + ASK_S
        while not self._over.is_set():
            try:
                request(self.cluster.client)
                return
            except ApiError as error:
                if not error.retryable:
                    return  # e.g. a job that has ended can't be paused
            except ServerUnreachableError:
                pass
            if time.monotonic() > deadline:
                self.problems.append(f"not within {ASK_S:.0f} s: {what}")
                return
            time.sleep(0.3)

    @property
    def calm(self) -> bool:
        """Whether nothing is left to be undone."""
        return not self._later and all(asked.done() for asked in self._asked)

    @property
    def unfinished(self) -> list[Job]:
        return [job for job in self.jobs.values() if not job.state.final]

    def on(self, node_id: str) -> set[str]:
        """Jobs that have an attempt on the node."""
        return {
            job.id
            for job in self.unfinished
            if job.attempts
            and job.attempts[-1].ended_at is None
            and any(part.node_id == node_id for part in job.attempts[-1].allocations)
        }

    def doing(self) -> dict[str, str]:
        """What the attempts of the unfinished jobs do just now, by job: read where trainers write it."""
        found = {}
        for node in self.cluster.nodes:
            for folder in (node.folder / "attempts").glob("job-*"):
                if not (folder / "ended").exists():
                    found[folder.name.rpartition(".")[0]] = moment(AttemptDir(folder).phase(PREPARING_MODEL))
        return found

    def node_of_aim(self) -> Node | None:
        if self.aim is None:
            return None
        return next((node for node in self.cluster.nodes if self.aim in self.on(node.id)), None)

    def pick(self, module: str) -> tuple[ProcessId, str] | None:
        """A process that runs this module, and its job, preferably the one aimed at; None if none runs."""
        found: list[tuple[ProcessId, str]] = []
        for pid in sorted(self.cluster.pids(module)):
            with suppress(ProcessLookupError, OSError):
                found.append((ProcessId.of(pid), job_of(pid)))
        return self.chance.choice([one for one in found if one[1] == self.aim] or found) if found else None


def moment(phase: str) -> str:
    """What a phase says, without numbers."""
    step = read_step(phase)
    return step.activity if step is not None else phase


def job_of(pid: int) -> str:
    """The job of an attempt's process; "" for another process."""
    attempt = attempt_of(Path(f"/proc/{pid}/environ").read_text().split("\0"), command_line(pid))
    return attempt.rpartition(".")[0]


def attempt_of(environment: Sequence[str], arguments: Sequence[str]) -> str:
    """Its mark; a supervisor has none, but the attempt's folder as an argument."""
    marks = [one.partition("=")[2] for one in environment if one.startswith(f"{MARK}=")]
    folders = [Path(one).name for one in arguments if "/attempts/job-" in one]
    return next(iter(marks + folders), "")
