"""A demo that is stopped once its job is submitted. It may run beside other tests: nothing is trained."""

import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.demo import POWERMEAN, REPOSITORY, environment, processes_of

pytestmark = [pytest.mark.slow, pytest.mark.integration, pytest.mark.timeout(900)]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_demo_that_is_stopped_leaves_no_process(how: signal.Signals, tmp_path: Path) -> None:
    home = tmp_path / "home"
    process = subprocess.Popen(
        [POWERMEAN, "demo"], cwd=REPOSITORY, env=environment(home), stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:  # until the job is submitted
            if line.startswith("Job "):
                break
        assert processes_of(home)
        process.send_signal(how)
        assert process.wait(timeout=120) != 0
    finally:
        process.kill()
        process.wait()
    deadline = time.monotonic() + 120
    while processes_of(home) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(home) == []
