"""Child processes: started with a log, watched, ended with a grace, restarted after growing pauses.

A child dies with the thread that started it (tether.py), so start it from one that lives as long.
"""

import os
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from powermean.tether import ending_signal, tethered

TICK_S = 0.1  # between looks at a child
LOG_BYTES = 20_000_000  # a longer log is moved aside
LAST_BYTES = 20_000  # in which a log's last line is looked for
LAST_WORDS = 400  # most characters of it in an error


def start(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path | int,
    answer: Path | None = None,
    given: Path | None = None,
    passed: Sequence[int] = (),
    *,
    shielded: bool = False,
) -> subprocess.Popen[bytes]:
    """Start a program whose output is appended to `log`; with `answer`, its standard output goes there.

    `log` is a file, or a descriptor, which stays open here. With `given`, that file is its standard input.
    It also gets the descriptors in `passed`, under the same numbers. `shielded`: SIGTERM doesn't end it.

    It gets a session of its own: the terminal's Ctrl-C is for us, who end our children in order.
    """
    with (
        open(log, "ab", closefd=not isinstance(log, int)) as errors,
        answer.open("wb") if answer else nullcontext(errors) as output,
        (given or Path(os.devnull)).open("rb") as source,
    ):
        return subprocess.Popen(
            tethered(command, shielded=shielded),
            env=dict(environment),
            stdin=source,
            stdout=output,
            stderr=errors,
            start_new_session=True,
            pass_fds=tuple(passed),
        )


def wait(process: subprocess.Popen[bytes], limit_s: float, rest: Callable[[], object]) -> int | None:
    """The exit status, or None after `limit_s`. `rest` takes a moment between looks, and may raise."""
    deadline = monotonic() + limit_s
    while (code := process.poll()) is None and monotonic() < deadline:
        rest()
    return code


def end(process: subprocess.Popen[bytes] | subprocess.Popen[str], grace_s: float) -> None:
    """SIGTERM (SIGINT where that isn't heard), and SIGKILL after `grace_s`."""
    process.send_signal(ending_signal())
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def last_words(log: Path) -> str:
    """The last line that is not blank, cut short; "" when there is no log."""
    if not log.exists():
        return ""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - LAST_BYTES))
        lines = file.read().decode(errors="replace").split("\n")
    return next((line.strip()[:LAST_WORDS] for line in reversed(lines) if line.strip()), "")


def rotate(log: Path, most_bytes: int = LOG_BYTES) -> None:
    """Move the text of a log that has grown too long to NAME.old.

    The child keeps writing to the same file, so that the text is copied and the file then emptied: a line
    written in between is lost. Where there is no room for the copy, all of the text is.
    """
    if log.exists() and log.stat().st_size > most_bytes:
        old = log.with_suffix(".old")
        try:
            shutil.copyfile(log, old)
        except OSError:
            old.unlink(missing_ok=True)
        os.truncate(log, 0)


@dataclass(frozen=True)
class RestartPolicy:
    """When a program that died is started again, and when no more."""

    most: int  # deaths within `window_s`; more are too many
    window_s: float
    first_pause_s: float = 0.0  # doubles with every death within `window_s`
    longest_pause_s: float = 60.0


class Deaths:
    """The recent deaths of one program, judged by a policy."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._times: deque[float] = deque()

    def add(self, now: float) -> None:
        """One more, `now` by a monotonic clock."""
        self._times.append(now)
        while self._times[0] < now - self._policy.window_s:
            self._times.popleft()

    @property
    def too_many(self) -> bool:
        return len(self._times) > self._policy.most

    @property
    def pause_s(self) -> float:
        """How long to wait before the next start."""
        pause = self._policy.first_pause_s * 2.0 ** (len(self._times) - 1)
        return min(pause, self._policy.longest_pause_s)
