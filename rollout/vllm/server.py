"""One vLLM server process: started, watched, restarted when it dies, and ended.

vLLM's development endpoints (pause, weight transfer, remote calls into the worker) require no key. The server
therefore listens on a socket file in a folder that only this user can enter, and on no port.
"""

import os
import secrets
import subprocess
import sys
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Event, Thread
from typing import Any, Literal

import httpx

from powermean.children import Deaths, RestartPolicy, end
from powermean.engine_selection import vllm_installed
from powermean.processes import end_all, marked
from rollout.engine import EngineError
from rollout.own_folder import OwnFolder
from rollout.vllm.command import VllmOptions, server_command, server_environment
from rollout.vllm.guard import guarded

_MARK = "POWERMEAN_VLLM"  # in the environment of all processes of one server
_POLL_S = 0.25
_LOOK_S = 2.0  # between looks at whether its engine is still there
_LENIENCE_S = 2.0  # waiters see the deadline of a start before the keeper gives it up
_REMEMBERED_LINES = 60
_REASON_LINES = 12
RESTARTS = RestartPolicy(most=3, window_s=1800.0)  # one that dies more often stays down


@dataclass(frozen=True)
class Deadlines:
    """Seconds after which a wait ends with a named error."""

    start: float = 600.0
    generate: float = 3600.0
    sync_step: float = 180.0  # each step of a publish
    page: float = 3.0  # queries of its state
    stop: float = 15.0


# held: it ended while its memory belongs to the trainer, and is started again when that is over.
Phase = Literal["starting", "ready", "held", "failed", "closed"]


def require_vllm() -> None:
    """Raises EngineError (vllm_missing) if vLLM is not installed."""
    if not vllm_installed():
        raise EngineError(
            500,
            "vllm_missing",
            "the vLLM engine was requested, but vLLM is not installed",
            remedy="Install the extra as described in docs/vllm.md, or use the transformers engine.",
        )


class VllmServer:
    """Supervises the process. Its methods may be called from any thread."""

    def __init__(
        self,
        options: VllmOptions,
        deadlines: Deadlines | None = None,
        restarts: RestartPolicy = RESTARTS,
    ) -> None:
        require_vllm()
        self.options = options
        self.deadlines = deadlines or Deadlines()
        self._restarts = restarts
        self._folder = OwnFolder()
        self._key = secrets.token_urlsafe(32)
        self._mark = secrets.token_hex(16)
        self._guard = 0
        self._lines: deque[str] = deque(maxlen=_REMEMBERED_LINES)
        self._changed = Condition()
        self._phase: Phase = "starting"
        self._starts = 0
        self._reason = ""
        self._killed_for: str | None = None
        self._held = False
        self._closing = Event()
        # The keeper thread starts the process and must live as long: see powermean.tether.
        self._keeper = Thread(target=self._keep, name="vllm-keeper", daemon=True)
        self._keeper.start()

    @property
    def folder(self) -> Path:
        """The folder that only this user can enter; removed by close()."""
        return self._folder.path

    @property
    def socket(self) -> Path:
        return self.folder / "api.sock"

    @property
    def phase(self) -> Phase:
        return self._phase

    @property
    def starts(self) -> int:
        """How often the process became ready. Weights and adapters of earlier starts are gone."""
        return self._starts

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Authorization": f"Bearer {self._key}"}

    def wait_ready(self) -> None:
        """Raises EngineError (engine_start_failed, engine_start_timeout)."""
        limit = self.deadlines.start
        with self._changed:
            settled = self._changed.wait_for(lambda: self._phase != "starting", timeout=limit)
            if settled and self._phase == "ready":
                return
        if not settled:
            raise EngineError(
                504,
                "engine_start_timeout",
                f"vLLM was not ready after {limit:.0f} s; its last lines:\n{self._last_lines()}",
                remedy="Raise the deadline on a slow machine; the lines may show what it is waiting for.",
            )
        raise EngineError(500, "engine_start_failed", self._reason, remedy=_start_remedy(self._reason))

    def hold(self) -> None:
        """From now on a process that ends is not started again: the trainer has its memory."""
        self._held = True

    def release(self) -> None:
        """End a hold. A process that ended meanwhile is started again, which this waits for.

        Raises EngineError (engine_starting, engine_failed, engine_start_failed, engine_start_timeout).
        """
        with self._changed:
            down, self._held = self._phase == "held", False
            if down:
                self._phase = "starting"
                self._changed.notify_all()
        if down:
            self.wait_ready()
        self.check_ready()

    def wait_given_up(self) -> str | None:
        """Wait until the process is no longer restarted; returns why, or None if the server was closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._phase in ("failed", "closed"))
            return self._reason if self._phase == "failed" else None

    def check_ready(self) -> None:
        """Raises EngineError (engine_starting, engine_failed) unless the process is serving."""
        if self._phase == "ready":
            return
        if self._phase in ("starting", "held"):
            raise EngineError(
                503,
                "engine_starting",
                f"vLLM is {'restarting: ' + self._reason if self._reason else 'starting'}",
                remedy="Try again when /health says that the engine is ready.",
            )
        raise EngineError(
            503, "engine_failed", self._reason or "vLLM was stopped", remedy="Restart the service."
        )

    def call(
        self,
        step: str,
        path: str,
        *,
        body: object = None,
        params: Mapping[str, str] | None = None,
        method: str = "POST",
    ) -> Any:
        """One request to the process; its JSON, or None.

        `step` names it in errors. Raises EngineError: engine_timeout, engine_died, engine_error.
        """
        limit = self.deadlines.sync_step
        return content(step, self._ask(step, limit, method, path, json=body, params=params))

    def text(self, step: str, path: str) -> str:
        """The text at a path of the process. Raises EngineError: engine_timeout, engine_died."""
        return self._ask(step, self.deadlines.page, "GET", path).text

    def _ask(self, step: str, limit: float, method: str, path: str, **sent: Any) -> httpx.Response:
        try:
            with self._client(limit) as client:
                return client.request(method, path, **sent)
        except httpx.TimeoutException as error:
            raise EngineError(
                504, "engine_timeout", f"vLLM did not finish {step!r} within {limit:.0f} s"
            ) from error
        except httpx.TransportError as error:
            raise self.died(step, error) from error

    def died(self, step: str, error: Exception) -> EngineError:
        """The error of a broken connection."""
        return EngineError(
            503,
            "engine_died",
            f"vLLM died during {step!r}: {error or type(error).__name__}",
            remedy="It is being restarted: wait for /health, then publish the weights again.",
        )

    def kill(self, reason: str) -> None:
        """End the process at once; the keeper restarts it, if it has not done so already or holds it."""
        # The keeper may start the next server while this one's processes are being ended.
        mark, guard = self._mark, self._guard
        if self._phase == "ready":
            self._killed_for = reason
            # The guard is spared: it removes what the others leave and then ends.
            end_all(lambda: marked(_MARK, mark) - {guard}, grace_s=0.0)

    def close(self) -> None:
        """End the process and remove its folder."""
        self._closing.set()
        with self._changed:
            self._changed.notify_all()
        self._keeper.join(timeout=2 * self.deadlines.stop)
        end_all(self._processes, grace_s=0.0)  # in case the keeper has not ended it yet
        self._move("closed")
        self._folder.remove()

    def _processes(self) -> set[int]:
        return marked(_MARK, self._mark)

    def _client(self, limit: float) -> httpx.Client:
        return httpx.Client(
            transport=httpx.HTTPTransport(uds=str(self.socket)),
            base_url="http://vllm",
            headers=self.headers,
            timeout=limit,
        )

    def _keep(self) -> None:
        """Start, watch and restart the process until closed, or until it has died too often."""
        deaths = Deaths(self._restarts)
        while not self._closing.is_set():
            process = self._spawn()
            if self._became_ready(process):
                self._starts += 1
                self._move("ready")
                self._watch(process)
            elif self._starts == 0 and not self._closing.is_set():
                self._end(process)
                return self._move("failed", f"vLLM did not start:\n{self._last_lines()}")
            self._end(process)
            if self._closing.is_set():
                break
            deaths.add(time.monotonic())
            killed_for, self._killed_for = self._killed_for, None
            reason = f"vLLM ended with status {process.returncode}; its last lines:\n{self._last_lines()}"
            if killed_for is not None:
                reason = f"{killed_for}; vLLM was ended. Its last lines:\n{self._last_lines()}"
            if deaths.too_many:
                return self._move("failed", reason)
            self._move("held" if self._held else "starting", reason)
            with self._changed:
                self._changed.wait_for(lambda: self._phase != "held" or self._closing.is_set())
        return None

    def _watch(self, process: subprocess.Popen[str]) -> None:
        """Until it ends. If its engine is gone, it is ended: it would wait for calls that nobody answers."""
        look_again = time.monotonic() + _LOOK_S
        while process.poll() is None and not self._closing.wait(_POLL_S):
            if time.monotonic() > look_again:
                if self._is_lost():
                    self.kill("its engine process is gone")
                look_again = time.monotonic() + _LOOK_S

    def _spawn(self) -> subprocess.Popen[str]:
        self._mark = secrets.token_hex(16)
        self.socket.unlink(missing_ok=True)
        self._lines.clear()
        own = {"VLLM_API_KEY": self._key, _MARK: self._mark}
        process = subprocess.Popen(
            guarded(server_command(self.options, self.socket)),
            env=os.environ | server_environment(self.options, self.folder) | own,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        self._guard = process.pid
        Thread(target=self._relay, args=(process,), name="vllm-log", daemon=True).start()
        return process

    def _relay(self, process: subprocess.Popen[str]) -> None:
        """Copy the process's output to our log; keep the last lines for error messages."""
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(line.rstrip())
            sys.stderr.write(line)

    def _became_ready(self, process: subprocess.Popen[str]) -> bool:
        end = time.monotonic() + self.deadlines.start + _LENIENCE_S
        while time.monotonic() < end and process.poll() is None and not self._closing.is_set():
            if self._answers():
                return True
            self._closing.wait(_POLL_S)
        return False

    def _answers(self) -> bool:
        if not self.socket.exists():
            return False
        try:
            return self._health() == httpx.codes.OK
        except httpx.TransportError:
            return False

    def _is_lost(self) -> bool:
        """Whether a server that was ready says that its engine is dead, or listens no more."""
        try:
            return self._health() == httpx.codes.SERVICE_UNAVAILABLE
        except httpx.ConnectError:
            return True
        except httpx.TransportError:  # it is busy
            return False

    def _health(self) -> int:
        with self._client(2.0) as client:
            return client.get("/health").status_code

    def _end(self, process: subprocess.Popen[str]) -> None:
        """End a server in order, or what is left of a dead one."""
        end(process, self.deadlines.stop)
        end_all(self._processes, grace_s=0.0)

    def _move(self, phase: Phase, reason: str | None = None) -> None:
        with self._changed:
            self._phase = phase
            if reason is not None:
                self._reason = reason
            self._changed.notify_all()

    def _last_lines(self) -> str:
        lines = list(self._lines)
        errors = [line for line in lines if "Error" in line and "Traceback" not in line]
        return "\n".join([*errors[-3:], *lines[-_REASON_LINES:]]) or "(it wrote nothing)"


def content(step: str, reply: httpx.Response) -> Any:
    """The reply's JSON, or None. Raises EngineError (engine_error) for anything but success."""
    if reply.is_success:
        is_json = reply.headers.get("content-type", "").startswith("application/json")
        return reply.json() if is_json and reply.content else None
    raise EngineError(
        500 if reply.status_code >= 500 else 409,
        "engine_error",
        f"vLLM refused {step!r} with {reply.status_code}: {reply.text[:800]}",
    )


def _start_remedy(reason: str) -> str:
    if "not supported" in reason or "architectures" in reason:
        return "vLLM does not serve this model: use the transformers engine."
    if "memory" in reason.lower():
        return "Give it a smaller cache, a shorter context or a larger machine."
    return "Its last lines say why; docs/vllm.md lists what it needs."
