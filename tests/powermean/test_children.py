"""Child processes: what they print, how they are waited for and ended, and how often they may die."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from powermean import tether
from powermean.children import Deaths, RestartPolicy, end, last_words, rotate, start, wait
from powermean.processes import ProcessId

SLEEP = "import time; time.sleep(60)"


def child(program: str, log: Path, answer: Path | None = None) -> subprocess.Popen[bytes]:
    return start([sys.executable, "-S", "-c", program], dict(os.environ), log, answer)


def test_output_is_added_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    child("import sys; print('out', flush=True); print('error', file=sys.stderr)", log).wait(10)
    assert log.read_text() == "before\nout\nerror\n"


def test_an_answer_is_kept_apart_from_the_log_and_replaces_the_last_one(tmp_path: Path) -> None:
    log, answer = tmp_path / "log", tmp_path / "answer"
    answer.write_text("a longer one from before")
    child("import sys; print('42'); print('note', file=sys.stderr)", log, answer).wait(10)
    assert (log.read_text(), answer.read_text()) == ("note\n", "42\n")


def test_a_child_dies_with_the_process_that_started_it(tmp_path: Path) -> None:
    parent = (
        "import os, sys, time; from pathlib import Path; from powermean.children import start\n"
        f"command, log = [sys.executable, '-S', '-c', {SLEEP!r}], Path({str(tmp_path)!r}) / 'log'\n"
        "print(start(command, dict(os.environ), log).pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert process.stdout
    orphan = ProcessId.of(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    deadline = time.monotonic() + 10
    while orphan.alive:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_supervisor_of_the_version_before_starts_programs_by_the_command_line_that_it_knows() -> None:
    """It has outlived an upgrade in place."""
    command = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid()), "sh", "-c", "exit 3"]
    assert subprocess.run(command, check=False).returncode == 3


def test_waiting_ends_with_the_child_or_at_the_limit(tmp_path: Path) -> None:
    process = child(SLEEP, tmp_path / "log")
    looks: list[float] = []
    assert wait(process, 0.1, lambda: looks.append(time.sleep(0.01) or 0)) is None
    assert len(looks) > 1
    process.kill()
    assert wait(process, 10, lambda: time.sleep(0.01)) == -9


def test_waiting_can_be_broken_off(tmp_path: Path) -> None:
    process = child(SLEEP, tmp_path / "log")

    def give_up() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        wait(process, 60, give_up)
    end(process, grace_s=10)
    assert process.returncode == -15


def test_the_last_words_are_the_last_line_that_is_not_blank(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert last_words(log) == ""
    log.write_bytes(b"first\n" + b"x" * 100_000 + b"\n  no luck \xff \n\n  \n")
    assert last_words(log) == "no luck \ufffd"
    log.write_text("y" * 10_000)
    assert last_words(log) == "y" * 400


def test_a_log_stays_bounded_while_it_is_written_to(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    process = child("for line in iter(input, 'end'): print(line, flush=True)", log)
    process.wait(10)  # its stdin is empty: only what it printed about that is in the log
    with log.open("ab", buffering=0) as out:
        out.write(b"a" * 50)
        rotate(log, most_bytes=10_000)
        assert not (tmp_path / "a.old").exists()
        before = log.read_bytes()
        rotate(log, most_bytes=40)
        assert (tmp_path / "a.old").read_bytes() == before
        out.write(b"after")
    assert log.read_bytes() == b"after"


def test_pauses_double_up_to_the_longest_and_start_over_after_a_quiet_window() -> None:
    deaths = Deaths(RestartPolicy(most=3, window_s=60, first_pause_s=0.5, longest_pause_s=3))
    pauses = []
    for now in (0, 1, 2, 3, 4):
        deaths.add(now)
        pauses.append(deaths.pause_s)
    assert pauses == [0.5, 1, 2, 3, 3]
    assert deaths.too_many
    deaths.add(100)
    assert (deaths.pause_s, deaths.too_many) == (0.5, False)


def test_deaths_are_too_many_from_one_above_the_policys_number_on() -> None:
    deaths = Deaths(RestartPolicy(most=1, window_s=10))
    assert not deaths.too_many
    deaths.add(0)
    assert (deaths.too_many, deaths.pause_s) == (False, 0)
    deaths.add(10)
    assert deaths.too_many
    deaths.add(20.5)
    assert not deaths.too_many
