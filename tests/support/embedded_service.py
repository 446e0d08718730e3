"""The whole service as people start it, `powermean up`, with short leases, in a folder of the test's own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from powermean import ApiError, Client, ServerUnreachableError
from powermean.cli.embedded import free_port
from powermean.contracts.api import Job, JobState
from powermean.processes import descendants, marked

T = TypeVar("T")
QUICK = {
    "POWERMEAN_LEASE_S": "5",
    "POWERMEAN_BEAT_S": "0.5",
    "POWERMEAN_CLAIM_S": "10",
    "POWERMEAN_NODE_TIMEOUT_S": "10",
    "POWERMEAN_LEADER_LEASE_S": "2",
    "POWERMEAN_POLL_S": "0.5",
    "POWERMEAN_RESEND_S": "0.5",
    "POWERMEAN_RESTART_BACKOFF_S": "0.2",
    "OMP_NUM_THREADS": "1",
}
START_S = 90.0
JOB_S = 240.0
LOOK_S = 0.2  # an answer takes 10 ms of CPU time: looking all the time would take a fifth of a core
SERVICE = "POWERMEAN_LIFELINE_PID"


def until(find: Callable[[], T | None], deadline_s: float, what: str, pause_s: float = LOOK_S) -> T:
    """The first thing found. Fails by name at the deadline."""
    deadline = time.monotonic() + deadline_s
    while True:
        found = find()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {deadline_s:.0f} s: {what}"
        time.sleep(pause_s)


@dataclass
class Service:
    """`powermean up` as a process."""

    home: Path
    model_root: Path
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)  # besides the one that all tests have
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = dict(os.environ) | QUICK
        environment |= {"POWERMEAN_HOME": str(self.home), "POWERMEAN_MODEL_ROOTS": str(self.model_root)}
        environment |= self.environment
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # many processes compile the same files
        with (self.home.parent / "up.log").open("ab") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "powermean", "up", "--port", str(self.port)],
                env=environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        until(self._ready, START_S, f"the service is up; see {self.home.parent}")

    def _ready(self) -> bool:
        assert self.process
        assert self.process.poll() is None, (self.home.parent / "up.log").read_text()
        lock, address = self.home / "lock", self.home / "server.url"
        return lock.exists() and f"process {self.pid}," in lock.read_text() and address.exists()

    @property
    def client(self) -> Client:
        return Client(f"http://127.0.0.1:{self.port}", (self.home / "secrets" / "admin.key").read_text())

    @property
    def pid(self) -> int:
        assert self.process
        return self.process.pid

    def interrupt(self) -> int:
        """Ctrl-C; its exit status."""
        assert self.process
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def kill(self) -> None:
        assert self.process
        self.process.kill()
        self.process.wait()

    def all_pids(self) -> set[int]:
        """Whatever was started for this service and still lives, however it was started."""
        return (descendants(self.pid) | marked(SERVICE, str(self.pid))) - {self.pid}

    def running(self, module: str) -> set[int]:
        """Processes of the service that run a module, e.g. trainer.run."""
        return {pid for pid in self.all_pids() if runs(module, command_line(pid))}

    @contextmanager
    def second_node(self, folder: Path, name: str = "second") -> Iterator[str]:
        """Another worker, with the environment of the service's own; the node's name."""
        (pid,) = self.running("worker")
        given = Path(f"/proc/{pid}/environ").read_bytes().decode().rstrip("\0").split("\0")
        environment = dict(one.split("=", 1) for one in given)
        environment |= {"POWERMEAN_NODE_ID": name, "POWERMEAN_DATA_DIR": str(folder / "node")}
        with (folder / "worker.log").open("ab") as out:
            worker = subprocess.Popen(
                [sys.executable, "-m", "worker"], env=environment, stdout=out, stderr=out, cwd=os.getcwd()
            )
        try:
            until(lambda: len(self.client.nodes().items) == 2, 60, f"it reports; see {folder}")
            yield name
        finally:
            worker.terminate()
            worker.wait(30)

    def at_step(self, job_id: str, step: int, deadline_s: float = JOB_S) -> Job:
        """Wait until the job has trained so far; fails when it ends before."""

        def there() -> Job | None:
            try:
                job = self.client.get_job(job_id)
            except (ServerUnreachableError, ApiError):
                return None
            assert not job.state.final, f"{job.state} at step {job.step}: {job.error}"
            return job if job.step >= step else None

        return until(there, deadline_s, f"{job_id} at step {step}", pause_s=0.1)

    def ended(self, job_id: str) -> Job:
        """Wait until the job has ended."""

        def over() -> Job | None:
            try:
                job = self.client.get_job(job_id)
            except (ServerUnreachableError, ApiError):
                return None
            return job if job.state.final else None

        return until(over, JOB_S, f"{job_id} ended")

    def finished(self, job_id: str) -> Job:
        job = self.ended(job_id)
        assert job.state is JobState.FINISHED, f"{job.state}: {job.error}\n{self.client.logs(job_id).text}"
        return job


def runs(module: str, arguments: list[str]) -> bool:
    """Whether this is a module's command line. Celery names its process where setproctitle is installed."""
    named = module == "worker" and arguments[:1] != [] and arguments[0].startswith("[celeryd")
    return named or module in arguments


def command_line(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except (FileNotFoundError, ProcessLookupError):
        return []


def metric_rows(client: Client, job_id: str) -> dict[tuple[int, int, str], float | None]:
    """Every metric row that counts. Fails when the history has a row twice."""
    history = client.metrics(job_id, sorted(client.metric_names()), max_points=10_000)
    rows: dict[tuple[int, int, str], float | None] = {}
    for series in history.series:
        for point in series.points:
            key = (point.step, point.update, series.name)
            assert key not in rows, f"{key} is there twice"
            rows[key] = point.value
    return rows


def learned(rows: dict[tuple[int, int, str], float | None]) -> dict[Any, float | None]:
    """The rows that a repeated run must repeat bit by bit: all but clocks."""
    return {
        key: value for key, value in rows.items() if not key[2].startswith("time/") and "second" not in key[2]
    }
