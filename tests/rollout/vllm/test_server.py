"""Supervision of the vLLM process, with a stand-in for vLLM itself."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from powermean.children import RestartPolicy
from powermean.processes import descendants, end_all
from rollout.engine import EngineError
from rollout.vllm import server as vllm_server
from rollout.vllm.command import VllmOptions
from rollout.vllm.server import Deadlines, VllmServer, require_vllm

pytestmark = pytest.mark.slow

FAKE = Path(__file__).parents[2] / "support" / "fake_vllm.py"
ROOT = Path(__file__).parents[3]
QUICK = Deadlines(start=20.0, sync_step=10.0, stop=3.0)
Make = Callable[..., VllmServer]


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Make]:
    monkeypatch.setattr(vllm_server, "require_vllm", lambda: None)
    made: list[VllmServer] = []

    def start(mode: str = "serve", **settings: object) -> VllmServer:
        monkeypatch.setattr(
            vllm_server, "server_command", lambda _options, path: [sys.executable, str(FAKE), str(path), mode]
        )
        settings = {"deadlines": QUICK} | settings
        made.append(VllmServer(VllmOptions(tmp_path, "float32"), **settings))  # type: ignore[arg-type]
        return made[-1]

    yield start
    for server in made:
        server.close()


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def _error(action: Callable[[], object]) -> EngineError:
    with pytest.raises(EngineError) as caught:
        action()
    return caught.value


def test_without_vllm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    error = _error(require_vllm)
    assert error.code == "vllm_missing"
    assert error.remedy is not None
    assert "docs/vllm.md" in error.remedy


def test_it_starts_serves_and_leaves_nothing(make: Make) -> None:
    server = make()
    server.wait_ready()
    server.check_ready()
    assert (server.phase, server.starts) == ("ready", 1)
    assert server.socket.parent.stat().st_mode & 0o077 == 0
    assert server.call("describe", "/v1/models", method="GET") == {}
    family = server._processes()
    assert len(family) == 3  # guard, server, the server's child
    folder = server.socket.parent
    server.close()
    assert server.phase == "closed"
    assert not server._processes()
    assert not folder.exists()


def test_a_failed_start_tells_its_last_lines(make: Make) -> None:
    error = _error(make("crash").wait_ready)
    assert error.code == "engine_start_failed"
    assert "key/value cache does not fit" in str(error)
    assert error.remedy is not None
    assert "smaller cache" in error.remedy


@pytest.mark.slow
def test_a_start_has_a_deadline(make: Make) -> None:
    server = make("mute", deadlines=Deadlines(start=1.0, stop=3.0))
    assert _error(server.wait_ready).code == "engine_start_timeout"
    server.close()
    assert not server._processes()


@pytest.mark.slow
def test_a_step_has_a_deadline(make: Make) -> None:
    server = make(deadlines=replace(QUICK, sync_step=0.5))
    server.wait_ready()
    error = _error(lambda: server.call("load weights", "/collective_rpc"))
    assert (error.status, error.code) == (504, "engine_timeout")
    assert "'load weights'" in str(error)


@pytest.mark.slow
def test_a_server_that_dies_is_reported_and_started_anew(make: Make) -> None:
    server = make()
    server.wait_ready()
    make("mute")  # so that its successor is not there before anybody looks
    server.kill("for the test")
    _until(lambda: server.phase == "starting")
    assert _error(server.check_ready).code == "engine_starting"
    make("serve")
    end_all(server._processes, grace_s=0.0)
    _until(lambda: server.starts == 2 and server.phase == "ready", 60.0)


@pytest.mark.slow
def test_what_was_started_anew_already_is_not_ended_for_its_predecessors_faults(make: Make) -> None:
    server = make()
    server.wait_ready()
    make("mute")  # what is started from now on is mute
    server.kill("for the test")
    _until(lambda: server.phase == "starting" and len(server._processes()) == 3)
    family = server._processes()
    server.kill("said too late")
    assert server._processes() == family


@pytest.mark.slow
def test_one_that_does_not_come_back_stays_down(make: Make) -> None:
    """Each start has its deadline, also one after a death."""
    server = make(deadlines=Deadlines(start=6.0, stop=1.0), restarts=RestartPolicy(most=1, window_s=60.0))
    server.wait_ready()
    make("mute")  # what is started from now on is mute
    server.kill("for the test")
    _until(lambda: server.phase == "failed", 30.0)
    assert not server._processes()


@pytest.mark.slow
def test_one_that_dies_too_often_stays_down(make: Make) -> None:
    server = make(restarts=RestartPolicy(most=1, window_s=60.0))
    server.wait_ready()
    for starts in (1, 2):
        _until(lambda starts=starts: server.starts == starts and server.phase == "ready")
        server.kill("for the test")
        _until(lambda starts=starts: server.phase == "failed" or server.starts > starts)
    why = server.wait_given_up()
    assert why is not None
    assert why.startswith("for the test; vLLM was ended.")
    assert server.phase == "failed"
    assert _error(server.check_ready).code == "engine_failed"


def test_a_killed_service_leaves_no_process(tmp_path: Path) -> None:
    """Not even the engine process, which would outlive its API server."""
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from rollout.vllm import server as s\n"
        "s.require_vllm = lambda: None\n"
        f"s.server_command = lambda o, path: [sys.executable, {str(FAKE)!r}, str(path), 'serve']\n"
        "server = s.VllmServer(s.VllmOptions(Path('.'), 'float32'))\n"
        "server.wait_ready()\n"
        "print('ready', server.socket, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=dict(os.environ)
    ) as service:
        assert service.stdout is not None
        assert service.stdout.readline().startswith("ready")
        family = descendants(service.pid)
        assert len(family) == 3
        service.send_signal(signal.SIGKILL)
    _until(lambda: not any(Path(f"/proc/{pid}/stat").exists() and _alive(pid) for pid in family))


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False
