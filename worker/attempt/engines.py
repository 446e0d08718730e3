"""The rollout engines that an attempt has on its node; one that dies is started again while others go on.

Trainers know an engine by its address, so one that is started again gets its old port.
"""

import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from powermean.children import Deaths, RestartPolicy
from powermean.contracts.attempts import Claim, EngineStart
from powermean.processes import exit_text
from worker.attempt.supervisor_log import say
from worker.attempt_dir import AttemptDir

RESTARTS = RestartPolicy(most=3, window_s=1800.0, first_pause_s=1.0)  # one that dies more often stays down

Start = Callable[[int, int], subprocess.Popen[bytes]]  # of replica K, which is to listen on this port


@dataclass
class _Engine:
    process: subprocess.Popen[bytes]
    deaths: Deaths
    port: int = 0  # 0: it has never served
    start_at: float | None = None  # when it is started again, after it has died


class Engines:
    """All of them, as if they were one process: `poll` says when that has ended.

    Call it from the thread that made this one; what it starts ends with that thread.
    """

    def __init__(
        self, attempt: AttemptDir, claim: Claim, start: Start, restarts: RestartPolicy = RESTARTS
    ) -> None:
        self._attempt = attempt
        self._start = start
        replicas = claim.spec.rollout.replicas
        self._others_go_on = replicas * claim.spec.resources.nodes > 1
        self._engines = [_Engine(start(replica, 0), Deaths(restarts)) for replica in range(replicas)]

    def poll(self) -> int | None:
        """An exit status if one did not start, or if none is left that runs or will run."""
        codes = [self._look(replica, engine) for replica, engine in enumerate(self._engines)]
        failed = [code for code in codes if code is not None]
        if len(failed) == len(codes) or any(
            code is not None and not engine.port for code, engine in zip(codes, self._engines, strict=True)
        ):
            return failed[0]
        return None

    def wait(self) -> None:
        """Until all processes have ended."""
        for engine in self._engines:
            engine.process.wait()

    def failed_start(self) -> EngineStart | None:
        """Why one did not start; failing to restart one does not end the attempt."""
        starts = [
            self._attempt.engine_start(replica)
            for replica, engine in enumerate(self._engines)
            if not engine.port
        ]
        return next((start for start in starts if start is not None and start.error is not None), None)

    def _look(self, replica: int, engine: _Engine) -> int | None:
        """The exit status of one that has ended for good. One that died is started again after a pause."""
        engine.port = engine.port or self._port(replica)
        code = engine.process.poll()
        if code is None or not engine.port or not self._others_go_on:
            return code
        if engine.start_at is None:
            engine.deaths.add(time.monotonic())
            engine.start_at = time.monotonic() + engine.deaths.pause_s
            again = "it stays down" if engine.deaths.too_many else "it is started again"
            say(f"rollout engine {replica + 1} of {len(self._engines)} {exit_text(code)}: {again}")
        if engine.deaths.too_many:
            return code
        if time.monotonic() >= engine.start_at:
            engine.process, engine.start_at = self._start(replica, engine.port), None
        return None

    def _port(self, replica: int) -> int:
        start = self._attempt.engine_start(replica)
        return urlsplit(start.url).port or 0 if start is not None and start.url is not None else 0
