"""Shared memory of processes that were killed is removed; that of others is not."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.processes import descendants, start_time
from rollout.engines.left_memory import remove, used_by
from rollout.engines.vllm_guard import guarded

# What vLLM's processes do: a block that stays mapped, named as Python names it.
PROGRAM = """
import sys, time
from multiprocessing import resource_tracker, shared_memory
made = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(made._name, "shared_memory")
print(made.name, flush=True)
time.sleep(600)
"""


@pytest.fixture
def others() -> Iterator[Path]:
    file = Path(f"/dev/shm/powermean-test-{os.getpid()}")
    file.write_bytes(b"weights")
    yield file
    file.unlink()


def test_what_a_killed_process_had_is_removed(others: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        file = Path("/dev/shm", process.stdout.readline().strip())
        found = used_by([process.pid])
        process.kill()
    assert file.exists()
    assert file in found
    assert others not in found
    remove(found)
    assert not file.exists()
    remove(found)  # nothing is left to remove


def test_the_guard_removes_it_when_its_service_is_killed() -> None:
    script = f"import subprocess; subprocess.run({guarded([sys.executable, '-c', PROGRAM])[:3]!r} + "
    script += f"[str(__import__('os').getpid()), {sys.executable!r}, '-c', {PROGRAM!r}])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as service:
        assert service.stdout
        file = Path("/dev/shm", service.stdout.readline().strip())
        assert file.exists()
        family = descendants(service.pid)
        assert len(family) >= 2
        service.kill()
    deadline = time.monotonic() + 20
    while file.exists() or any(start_time(pid) for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)
