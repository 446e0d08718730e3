"""Child processes that are kept alive, and that never outlive this one."""

import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

from powermean.tether import tethered

TICK_S = 0.1
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
STEADY_S = 30.0  # one that ran this long starts afresh with the first pause
STARTUP_DEATHS = 3  # of a child before its service is ready: it can't start


@dataclass
class Child:
    """A program to keep alive, its output in a file."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = True
    deaths: int = 0
    last_code: int | None = None
    started: float = 0.0
    not_before: float = 0.0
    pause: float = field(default=FIRST_PAUSE_S)

    def last_words(self) -> str:
        """The last line of its log."""
        lines = self.log.read_text(errors="replace").split("\n") if self.log.exists() else []
        return next((line.strip() for line in reversed(lines) if line.strip()), "")


class Keeper(threading.Thread):
    """Starts children and restarts those that end, with growing pauses.

    A tethered child dies with the thread that started it, so that all are started from this one, which
    ends only after they were stopped, or with the process.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(name="keeper", daemon=True)
        self._tell = tell
        self._children: list[Child] = []
        self._new: Queue[Child] = Queue()
        self._halt = threading.Event()

    def add(self, child: Child) -> None:
        self._new.put(child)

    def failing(self) -> Child | None:
        """A child that keeps ending."""
        return next((child for child in self._children if child.deaths >= STARTUP_DEATHS), None)

    def run(self) -> None:
        while not self._halt.is_set():
            with suppress(Empty):
                self._children.append(self._new.get(timeout=TICK_S))
            for child in self._children:
                self._keep(child)

    def _keep(self, child: Child) -> None:
        now = time.monotonic()
        if child.process is not None:
            code = child.process.poll()
            if code is None:
                if now - child.started > STEADY_S:
                    child.deaths, child.pause = 0, FIRST_PAUSE_S
                return
            child.process, child.last_code = None, code
            if child.wanted:
                child.deaths += 1
                self._tell(f"The {child.name} ended with status {code} and is started again: see {child.log}")
            child.not_before = now + child.pause
            child.pause = min(child.pause * 2, LONGEST_PAUSE_S)
        if child.wanted and now >= child.not_before:
            self._start(child)

    def _start(self, child: Child) -> None:
        child.log.parent.mkdir(parents=True, exist_ok=True)
        with child.log.open("ab") as out:
            child.process = subprocess.Popen(
                tethered(child.command),
                env=dict(child.environment),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,  # the terminal's Ctrl-C is for us; they are stopped in order
            )
        child.started = time.monotonic()

    def stop(self, name: str, grace_s: float) -> None:
        """Stop a child for good: SIGTERM, and SIGKILL after `grace_s`."""
        for child in self._children:
            if child.name == name:
                child.wanted = False
                if (process := child.process) is not None:
                    end(process, grace_s)

    def close(self) -> None:
        """Start nothing any more. Children that still run end with this thread."""
        self._halt.set()
        self.join()


def end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    """SIGTERM, and SIGKILL after `grace_s`."""
    process.terminate()
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
