"""One process of a test's set-up, which the test itself starts, signals and starts again."""

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from powermean.children import start


class Program:
    """A command with its environment and log. It dies with the thread that starts it: use the main one."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        given: Path | None = None,
    ) -> None:
        self.name = name
        self.log = log
        self.environment = dict(environment)  # of the next start
        self._command = command
        self._given = given  # its standard input
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert not self.alive, f"{self.name} runs already"
        self.process = start(self._command, self.environment, self.log, given=self._given)

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def pid(self) -> int:
        assert self.process is not None, f"{self.name} was never started"
        return self.process.pid

    def send(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def wait(self, deadline_s: float) -> int:
        """Until it has ended; its exit status."""
        assert self.process is not None, f"{self.name} was never started"
        return self.process.wait(deadline_s)

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self.send(signal.SIGKILL)
        self.wait(10)

    def stop(self, grace_s: float, number: signal.Signals = signal.SIGTERM) -> int | None:
        """Signal it, and kill it after the grace; its exit status, None if it did not run."""
        if not self.alive:
            return None
        self.send(signal.SIGCONT)
        self.send(number)
        try:
            return self.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()
            return self.wait(0)
