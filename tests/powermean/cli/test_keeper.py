"""A program of the embedded service comes back whenever it ends, until it is stopped."""

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from powermean.cli.keeper import Keeper
from powermean.processes import ProcessId

DEADLINE_S = 10.0


def keeper(program: str, log: Path, tell: Callable[[str], None] = print) -> Keeper:
    made = Keeper("sleeper", [sys.executable, "-S", "-c", program], {}, log, tell)
    made.start()
    return made


def until(true: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def running(keeper: Keeper, unlike: ProcessId | None = None) -> ProcessId:
    found: list[ProcessId] = []

    def look() -> bool:
        if keeper.process and keeper.process.poll() is None:
            with suppress(ProcessLookupError):  # killed, and not yet found out by poll
                found.append(ProcessId.of(keeper.process.pid))
        return bool(found) and found[-1] != unlike

    until(look)
    return found[-1]


@pytest.mark.slow
def test_a_program_that_dies_is_started_again_and_one_that_was_stopped_is_not(tmp_path: Path) -> None:
    told: list[str] = []
    kept = keeper("import time; time.sleep(60)", tmp_path / "log", told.append)
    first = running(kept)
    assert kept.process
    kept.process.kill()
    second = running(kept, unlike=first)
    kept.stop(grace_s=5)
    assert not kept.is_alive()
    assert not second.alive
    assert told == [f"The sleeper ended with status -9 and is started again: see {tmp_path / 'log'}"]


@pytest.mark.slow
def test_a_program_that_can_not_be_started_is_tried_again(tmp_path: Path) -> None:
    """As where no more files can be opened; here its log's folder is missing at first."""
    told: list[str] = []
    kept = keeper("import time; time.sleep(60)", tmp_path / "logs" / "log", told.append)
    until(lambda: told)
    assert "The sleeper can't be started" in told[0]
    (tmp_path / "logs").mkdir()
    running(kept)
    kept.stop(grace_s=5)


def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    kept = keeper(stubborn, tmp_path / "log")
    until(lambda: (tmp_path / "log").exists() and "deaf" in (tmp_path / "log").read_text())
    process = running(kept)
    kept.stop(grace_s=0.1)
    assert not process.alive


@pytest.mark.slow
def test_a_program_that_cannot_start_is_found_out(tmp_path: Path) -> None:
    kept = keeper("raise SystemExit('no luck')", tmp_path / "log")
    until(lambda: kept.deaths.too_many)
    kept.stop(grace_s=0)
    assert kept.last_code == 1
