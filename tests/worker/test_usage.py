"""What attempts use is measured from their supervisors down."""

import os
import signal
import subprocess
import sys
import time

import pytest

from powermean.processes import ProcessId, cpu_seconds, resident_bytes
from worker import usage
from worker.usage import UsageMeter

BUSY = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"


@pytest.mark.slow
def test_a_busy_child_is_seen_and_an_idle_attempt_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usage, "EVERY_S", 0.0)
    meter = UsageMeter()
    busy = subprocess.Popen([sys.executable, "-c", BUSY], start_new_session=True)
    idle = subprocess.Popen(["sleep", "60"])
    try:
        supervisors = {"job-a.1": ProcessId.of(busy.pid), "job-b.1": ProcessId.of(idle.pid)}
        assert meter.look(supervisors) == ()  # one look is no speed
        time.sleep(1.5)
        first, second = meter.look(supervisors)
        assert (first.attempt_id, second.attempt_id) == ("job-a.1", "job-b.1")
        assert 0.1 < first.cpu < 1.5
        assert first.memory_mb >= 5  # two interpreters
        assert second.cpu == 0
        assert meter.look({}) == ()
    finally:
        os.killpg(busy.pid, signal.SIGKILL)
        for process in (busy, idle):
            process.kill()
            process.wait()


def test_a_look_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reports come every three seconds, and each look reads all of /proc."""
    looks: list[object] = []
    monkeypatch.setattr(usage, "trees", lambda roots: looks.append(1) or {pid: set() for pid in roots})
    meter = UsageMeter()
    for _ in range(3):
        meter.look({"job-a.1": ProcessId.own()})
    assert len(looks) == 1


def test_a_process_that_is_gone_uses_nothing() -> None:
    with subprocess.Popen(["true"]) as gone:
        pass
    assert (cpu_seconds(gone.pid), resident_bytes(gone.pid)) == (None, 0)
