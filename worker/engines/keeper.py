"""Keeps one engine service running: starts it, watches it, starts it again when it dies.

    preparing the model -> serving, watched -> (died: a pause, then again) -> failed, when it dies too often

The service is restarted on the port that it had, so that its jobs find it again; they publish their adapters
anew. vLLM's own deaths are the service's to repair: here its process is gone, or it says for too long that it
is not ready. All of it runs on one thread, which the engine's process is tied to (tether.py).
"""

import re
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
from pydantic import TypeAdapter, ValidationError

from powermean.children import TICK_S, Deaths, RestartPolicy, last_words, rotate, start, wait
from powermean.contracts.attempts import EngineReport, EngineStart, JobError
from powermean.contracts.engines import EngineOrder
from powermean.disk import is_full
from powermean.processes import end_all, exit_text, marked
from rollout.client import RolloutClient, RolloutError
from worker.attempt_dir import write_whole
from worker.launcher import ENGINE_MARK, Command, EngineLauncher

LOG_NAME = "engine.log"
_JOBS: TypeAdapter[tuple[str, ...]] = TypeAdapter(tuple[str, ...])
_REQUESTS = re.compile(r"^powermean_rollout_requests ([\d.e+]+)$", re.MULTILINE)

RESTARTS = RestartPolicy(most=5, window_s=1800.0, first_pause_s=1.0)


@dataclass(frozen=True)
class Patience:
    """How long the keeper waits, in seconds, and how often it tries."""

    prepare_s: float = 3600.0  # for the model to be ready
    start_s: float = 900.0  # the rollout service itself gives vLLM 600 s
    unready_s: float = 900.0  # for one that says that it is not ready
    look_s: float = 3.0  # between looks at its state
    answer_s: float = 5.0  # for its state
    grace_s: float = 10.0  # between SIGTERM and SIGKILL
    room_s: float = 10.0  # between tries while the disk is full
    restarts: RestartPolicy = RESTARTS


class _DownError(Exception):
    """The service does not run. `lasting`: another start will not help."""

    def __init__(self, error: JobError, *, lasting: bool = False) -> None:
        super().__init__(error.message)
        self.error = error
        self.lasting = lasting


class _HaltedError(Exception):
    """The service is not wanted any more."""


class EngineKeeper(threading.Thread):
    """Alive as long as anything of the service may be."""

    def __init__(
        self, order: EngineOrder, folder: Path, launcher: EngineLauncher, patience: Patience
    ) -> None:
        super().__init__(name=order.id, daemon=True)
        self.report = EngineReport(
            id=order.id, generation=order.generation, state="starting", gpu_uuids=order.gpu_uuids
        )
        self._order = order
        self._folder = folder
        self._log = folder / LOG_NAME
        self._launcher = launcher
        self._patience = patience
        self._halt = threading.Event()
        self._writing = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._shielded = False  # its processes, from SIGTERM
        self._model: Path | None = None

    def follow(self, order: EngineOrder) -> None:
        """The same service: a fresh token, and perhaps other jobs."""
        if order.jobs != self._order.jobs:
            self._write_jobs(order.jobs)  # if that fails, the next order is news again
        self._order = order

    def halt(self) -> None:
        """End the service, and then this thread."""
        self._halt.set()

    def run(self) -> None:
        try:
            self._end()  # what an earlier worker's left
            self._write_jobs(self._order.jobs)
            write_whole(self._folder / "spec.json", self._order.spec.model_dump_json())
            self._keep()
        except _HaltedError:
            pass
        except OSError as error:  # a task's boundary: a full disk must not end the service unseen
            self._fail(JobError(code="engine_start_failed", message=f"on its node: {error}"))
        finally:
            self._say(state="stopping")
            self._end()

    def _keep(self) -> None:
        deaths = Deaths(self._patience.restarts)
        while True:
            try:
                self._serve()
            except OSError as error:
                if not is_full(error):
                    raise
                self._end()
                full = _error("disk_full", f"The node's disk is full: {error}")
                self._say(state="starting", error=full, adapters=None)
                self._rest(self._patience.room_s)
            except _DownError as down:
                self._end()
                deaths.add(time.monotonic())
                if down.lasting or deaths.too_many:
                    self._fail(down.error)
                    return
                self._say(
                    state="starting", error=down.error, adapters=None, restarts=self.report.restarts + 1
                )
                self._rest(deaths.pause_s)

    def _fail(self, error: JobError) -> None:
        self._say(state="failed", error=error, adapters=None)
        self._halt.wait()

    def _serve(self) -> None:
        """Run the service. Raises _DownError when it does not run any more, _HaltedError when it need not."""
        if self._model is None:
            self._model = self._prepare()
        ready = self._folder / "engine.json"
        ready.unlink(missing_ok=True)
        command = self._launcher.serve(self._order, self._model, self._folder, self._port())
        process = self._start(command)
        url = self._await_start(process, ready)
        self._say(url=url)
        self._watch(process, url)

    def _prepare(self) -> Path:
        command = self._launcher.prepare(self._order, self._folder / "spec.json")
        answer = self._folder / "model"
        process = self._start(command, answer)
        code = wait(process, self._patience.prepare_s, self._tick)
        if code is None:
            raise _DownError(_error("model_preparation_timeout", "Preparing the model took too long."))
        last = answer.read_text().strip().rpartition("\n")[2]
        if code == 0:
            return Path(last)
        try:
            start = EngineStart.model_validate_json(last)
        except ValidationError:
            words = f"Preparing the model {exit_text(code)}. {last_words(self._log)}"
            raise _DownError(_error("model_error", words)) from None
        raise _DownError(start.error or _error("model_error", last), lasting=not start.retryable)

    def _await_start(self, process: subprocess.Popen[bytes], ready: Path) -> str:
        deadline = time.monotonic() + self._patience.start_s
        while True:
            code = process.poll()  # first: what it wrote before it ended counts
            start = EngineStart.model_validate_json(ready.read_bytes()) if ready.exists() else None
            if start is not None and start.url is not None:
                return start.url
            if start is not None and start.error is not None:
                raise _DownError(start.error, lasting=not start.retryable)
            if code is not None:
                raise self._died(code)
            if time.monotonic() > deadline:
                limit = f"{self._patience.start_s:.0f} s"
                raise _DownError(_error("engine_start_timeout", f"The engine did not serve within {limit}."))
            self._tick()

    def _watch(self, process: subprocess.Popen[bytes], url: str) -> None:
        """Look at the service until its process ends, or it is not ready for too long."""
        ready_at = time.monotonic()
        while True:
            if self._look(url):
                ready_at = time.monotonic()
            elif time.monotonic() - ready_at > self._patience.unready_s:
                limit = f"{self._patience.unready_s:.0f} s"
                raise _DownError(_error("engine_unready", f"The engine was not ready for {limit}."))
            rotate(self._log)
            if (code := wait(process, self._patience.look_s, self._tick)) is not None:
                raise self._died(code)

    def _look(self, url: str) -> bool:
        """Whether it is ready; what it says of itself goes into the report."""
        token = self._order.token
        try:
            with RolloutClient(url, lambda: token) as client:
                state = client.health(self._patience.answer_s)
        except RolloutError:
            self._say(state="starting")
            return False
        self._say(
            state="ready" if state.ready else "starting",
            max_model_len=state.max_model_len,
            adapters=state.adapters,
            requests=self._requests(url, token),
        )
        if state.ready:
            self._say(error=None)
        return state.ready

    def _requests(self, url: str, token: str) -> int | None:
        """Requests that it works on; None where it does not say."""
        try:
            answer = httpx.get(
                f"{url}/metrics",
                headers={"Authorization": f"Bearer {token}"},
                timeout=self._patience.answer_s,
                trust_env=False,
            )
        except httpx.TransportError:
            return None
        found = _REQUESTS.search(answer.text) if answer.is_success else None
        return int(float(found[1])) if found else None

    def _port(self) -> int:
        """The service's own port, chosen once."""
        file = self._folder / "port"
        if not file.exists():
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                write_whole(file, str(probe.getsockname()[1]))
        return int(file.read_text())

    def _start(self, command: Command, answer: Path | None = None) -> subprocess.Popen[bytes]:
        self._shielded = command.shielded
        self._process = start(command.argv, command.environment, self._log, answer, shielded=command.shielded)
        return self._process

    def _end(self) -> None:
        """Nothing of the service runs afterwards."""
        ask = signal.SIGINT if self._shielded else signal.SIGTERM
        end_all(lambda: marked(ENGINE_MARK, self.report.id), self._patience.grace_s, ask=ask)
        if self._process is not None:
            self._process.wait()

    def _rest(self, seconds: float) -> None:
        if self._halt.wait(seconds):
            raise _HaltedError

    def _tick(self) -> None:
        self._rest(TICK_S)

    def _say(self, **changes: object) -> None:
        self.report = self.report.model_copy(update=changes)

    def _write_jobs(self, jobs: tuple[str, ...]) -> None:
        with self._writing:  # the worker's threads and this one
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            write_whole(self._folder / "jobs.json", _JOBS.dump_json(jobs).decode())

    def _died(self, code: int) -> _DownError:
        return _DownError(
            _error("engine_died", f"The engine {exit_text(code)}. {last_words(self._log)}".strip())
        )


def _error(code: str, message: str) -> JobError:
    remedy = "Its log is on the node, in the folder engines/ of POWERMEAN_DATA_DIR."
    return JobError(code=code, message=message.replace("\0", "\ufffd"), remedy=remedy)
