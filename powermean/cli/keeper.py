"""Keeps one program of the embedded service running."""

import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import monotonic

from powermean.children import TICK_S, Deaths, RestartPolicy, end, rotate, start

# A third death within a minute, before the service is ready, means that a program can't start.
RESTARTS = RestartPolicy(most=2, window_s=60.0, first_pause_s=0.5, longest_pause_s=10.0)


class Keeper(threading.Thread):
    """Starts the program again whenever it ends, until `stop`.

    The program dies with the thread that started it: with this one, or with the process. The file `given` is
    its standard input at each start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        tell: Callable[[str], None],
        given: Path | None = None,
    ) -> None:
        super().__init__(name=name, daemon=True)
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self.deaths = Deaths(RESTARTS)
        self.last_code: int | None = None
        self._command = command
        self.environment = environment
        self._tell = tell
        self._given = given
        self._halt = threading.Event()
        self._grace_s = 0.0

    def run(self) -> None:
        while not self._halt.is_set():
            try:
                why = f"ended with status {self._watched()}"
            except OSError as error:  # no more processes or files: this thread's end would be the service's
                why = f"can't be started ({error})"
            if self._halt.is_set():
                return
            self.deaths.add(monotonic())
            self._tell(f"The {self.name} {why} and is started again: see {self.log}")
            self._halt.wait(self.deaths.pause_s)

    def _watched(self) -> int:
        """Run the program until it ends, or until `stop`; its exit status."""
        process = self.process = start(self._command, self.environment, self.log, given=self._given)
        while process.poll() is None and not self._halt.wait(TICK_S):
            rotate(self.log)
        if self._halt.is_set():
            end(process, self._grace_s)
        self.last_code = process.returncode
        return self.last_code

    def stop(self, grace_s: float) -> None:
        """End the program for good: SIGTERM, and SIGKILL after `grace_s`."""
        self._grace_s = grace_s
        self._halt.set()
        if self.is_alive():
            self.join()
