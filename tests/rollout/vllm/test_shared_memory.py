"""Shared memory of processes that were killed is removed; that of others is not."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.processes import descendants, start_time
from rollout.vllm.guard import guarded
from rollout.vllm.shared_memory import remove, used_by

# What vLLM's processes do: a block and a lock, with names of their own that stay.
PROGRAM = """
import time
from multiprocessing import get_context, resource_tracker, shared_memory
block = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(block._name, "shared_memory")
lock = get_context("spawn").Lock()
resource_tracker.unregister(lock._semlock.name, "semaphore")
print(block.name, "sem." + lock._semlock.name.strip("/"), flush=True)
time.sleep(600)
"""


def made_by(process: subprocess.Popen[str]) -> list[Path]:
    assert process.stdout
    files = [Path("/dev/shm", name) for name in process.stdout.readline().split()]
    assert [file.exists() for file in files] == [True, True]
    return files


@pytest.fixture
def others() -> Iterator[Path]:
    file = Path(f"/dev/shm/powermean-test-{os.getpid()}")
    file.write_bytes(b"weights")
    yield file
    file.unlink()


def test_what_a_killed_process_had_is_removed(others: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        files = made_by(process)
        found = used_by([process.pid])
        process.kill()
    assert all(file.exists() and file in found for file in files)
    assert others not in found
    remove(found)
    assert not any(file.exists() for file in files)
    remove(found)  # nothing is left to remove


@pytest.mark.slow
def test_the_guard_removes_it_when_its_service_is_killed() -> None:
    script = f"import subprocess; subprocess.run({guarded([sys.executable, '-c', PROGRAM])[:3]!r} + "
    script += f"[str(__import__('os').getpid()), {sys.executable!r}, '-c', {PROGRAM!r}])"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as service:
        files = made_by(service)
        family = descendants(service.pid)
        assert len(family) >= 2
        service.kill()
    deadline = time.monotonic() + 20
    while any(file.exists() for file in files) or any(start_time(pid) for pid in family):
        assert time.monotonic() < deadline
        time.sleep(0.05)
