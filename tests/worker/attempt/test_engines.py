"""The engines of an attempt: one that dies is started again while others go on, and not for ever."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.children import RestartPolicy
from powermean.contracts.attempts import Claim, EngineStart, JobError
from powermean.contracts.job import JobSpec
from tests.support.tiny_spec import tiny_spec
from worker.attempt.engines import Engines
from worker.attempt_dir import AttemptDir

SLEEP = "import time; time.sleep(60)"


class Rig:
    """Engines that are programs of the test. `ports`: what each start was told."""

    def __init__(self, folder: Path, replicas: int, nodes: int = 1) -> None:
        rollout, resources = {"replicas": replicas}, {"nodes": nodes}
        spec = JobSpec.model_validate(tiny_spec("tiny", rollout=rollout, resources=resources))
        claim = Claim(
            attempt_id="job-a.1",
            job_id="job-a",
            number=1,
            spec=spec,
            allocations=(),
            token="t",
            lease_s=1,
            beat_s=1,
        )
        self.attempt = AttemptDir(folder)
        self.ports: list[tuple[int, int]] = []
        self.processes: list[subprocess.Popen[bytes]] = []
        self.engines = Engines(self.attempt, claim, self._start, RestartPolicy(most=1, window_s=60.0))

    def _start(self, replica: int, port: int) -> subprocess.Popen[bytes]:
        self.ports.append((replica, port))
        self.processes.append(subprocess.Popen([sys.executable, "-S", "-c", SLEEP]))
        return self.processes[-1]

    def serve(self, replica: int) -> None:
        url = f"http://127.0.0.1:{4000 + replica}"
        self.attempt.engine_file(replica).write_text(EngineStart(url=url).model_dump_json())
        self.engines.poll()

    def kill(self, start: int) -> None:
        self.processes[start].kill()
        self.processes[start].wait()


@pytest.fixture
def rig(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Rig]:
    made = Rig(tmp_path, *request.param)
    yield made
    for process in made.processes:
        process.kill()
    made.engines.wait()


@pytest.mark.parametrize("rig", [(2,)], indirect=True)
def test_one_that_dies_beside_another_is_started_again_on_its_port(
    rig: Rig, capsys: pytest.CaptureFixture[str]
) -> None:
    for replica in range(2):
        rig.serve(replica)
    assert rig.ports == [(0, 0), (1, 0)]
    rig.kill(1)
    assert rig.engines.poll() is None
    assert rig.ports[2:] == [(1, 4001)]
    rig.kill(2)  # and again: once too often
    assert rig.engines.poll() is None
    assert rig.engines.poll() is None
    assert len(rig.ports) == 3
    said = capsys.readouterr()
    text = said.out + said.err
    assert text.count("rollout engine 2 of 2 was killed") == 2
    assert ("it is started again" in text, "it stays down" in text) == (True, True)
    rig.kill(0)
    assert rig.engines.poll() is None
    rig.kill(3)
    assert rig.engines.poll() == -9  # none is left


@pytest.mark.parametrize("rig", [(1,)], indirect=True)
def test_the_only_one_is_the_attempts_end(rig: Rig) -> None:
    rig.serve(0)
    rig.kill(0)
    assert rig.engines.poll() == -9
    assert len(rig.ports) == 1


@pytest.mark.parametrize("rig", [(1, 2)], indirect=True)
def test_the_only_one_of_a_node_is_not_where_other_nodes_have_theirs(rig: Rig) -> None:
    rig.serve(0)
    rig.kill(0)
    assert rig.engines.poll() is None
    assert rig.ports[1:] == [(0, 4000)]


@pytest.mark.parametrize("rig", [(2,)], indirect=True)
def test_one_that_does_not_start_ends_the_attempt_with_its_reason(rig: Rig) -> None:
    rig.serve(0)
    why = EngineStart(error=JobError(code="engine_memory", message="no room"), retryable=True)
    rig.attempt.engine_file(1).write_text(why.model_dump_json())
    rig.kill(1)
    assert rig.engines.poll() == -9
    assert rig.engines.failed_start() == why
    rig.attempt.engine_file(0).write_text(why.model_dump_json())  # as of one that was started again
    assert rig.engines.failed_start() == why
    rig.attempt.engine_file(1).unlink()
    assert rig.engines.failed_start() is None


@pytest.mark.parametrize("rig", [(3,)], indirect=True)
def test_addresses_are_told_once_all_serve(rig: Rig) -> None:
    for replica in range(3):
        assert rig.attempt.engine_urls(3) == ()
        rig.serve(replica)
    assert rig.attempt.engine_urls(3) == tuple(f"http://127.0.0.1:{4000 + k}" for k in range(3))


@pytest.mark.parametrize("rig", [(2,)], indirect=True)
def test_a_start_again_waits_for_its_pause(rig: Rig) -> None:
    rig.engines._engines[1].deaths._policy = RestartPolicy(most=3, window_s=60.0, first_pause_s=0.2)
    for replica in range(2):
        rig.serve(replica)
    rig.kill(1)
    rig.engines.poll()
    assert len(rig.ports) == 2
    time.sleep(0.25)
    rig.engines.poll()
    assert len(rig.ports) == 3
