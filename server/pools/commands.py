"""What a command of an engine's prints, within a time and a size; one that is over either is ended whole."""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from tempfile import TemporaryFile
from typing import IO

from powermean.processes import exit_text
from server.pools.backend import PoolError

MOST_BYTES = 64 << 20  # that a command may print
TICK_S = 0.05
DYING_S = 5.0  # that a killed command may take to be gone
SHOWN = 200  # characters of an answer, in an error


def run(command: Sequence[str], given: str, timeout_s: float, name: str) -> str:
    """What `command` prints, with `given` as its standard input, which no file system has.

    Raises PoolError, with `name`, in the command's own words where it has some.
    """
    try:
        with (
            open(os.memfd_create("given"), "w+", encoding="utf-8") as source,
            TemporaryFile() as out,
            TemporaryFile() as errors,
        ):
            source.write(given)
            source.seek(0)
            process = subprocess.Popen(
                command, stdin=source, stdout=out, stderr=errors, start_new_session=True
            )
            _await(process, (out, errors), timeout_s, name)
            said = _text(out)
            if process.returncode != 0:
                words = _text(errors).strip() or said.strip()
                words = words.removeprefix(f"{name}: ").removeprefix("error: ")
                raise PoolError(f"{name}: {short(words) or f'{exit_text(process.returncode)}, no output'}")
            return said
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise PoolError(f"{command[0]} can't be run: {why}") from error


def short(text: str) -> str:
    """An answer as an error shows it."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def _await(process: subprocess.Popen[bytes], files: Sequence[IO[bytes]], timeout_s: float, name: str) -> None:
    """Until it has ended, or else it is killed with all that it has started. Raises PoolError."""
    deadline = time.monotonic() + timeout_s
    wrong = None
    while wrong is None:
        with suppress(subprocess.TimeoutExpired):
            process.wait(TICK_S)
        if any(os.fstat(file.fileno()).st_size > MOST_BYTES for file in files):
            wrong = f"{name} printed more than {MOST_BYTES >> 20} MiB"
        elif process.returncode is not None:
            return
        elif time.monotonic() > deadline:
            wrong = f"{name} did not answer within {timeout_s:.3g} s"
    with suppress(ProcessLookupError, PermissionError):  # behind sudo it is another user's
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.wait(DYING_S)
    raise PoolError(wrong)


def _text(file: IO[bytes]) -> str:
    """No database holds NUL."""
    file.seek(0)
    return file.read().decode(errors="replace").replace("\0", "\ufffd")
