"""`powermean up` with real processes: it starts, tells who holds a folder or port, leaves nothing behind."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean.processes import end_all
from tests.support.embedded_service import Service, until

pytestmark = [pytest.mark.integration, pytest.mark.slow]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    folder = tmp_path / "what?[1] 50%::#"  # each of these means something in another program's language
    folder.mkdir()
    service = Service(folder / "home", tmp_path)
    yield service
    if service.process and service.process.poll() is None:
        service.kill()
        end_all(service.all_pids, grace_s=0)


def powermean(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = dict(os.environ) | {"POWERMEAN_HOME": str(home)}
    command = [sys.executable, "-m", "powermean", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_up_serves_and_a_second_up_tells_who_holds_the_folder(service: Service) -> None:
    service.start()
    nodes = powermean(service.home, "nodes")
    assert nodes.returncode == 0, nodes.stderr
    assert "local" in nodes.stdout
    second = powermean(service.home, "up")
    assert second.returncode == 1
    assert f"process {service.pid}, http://127.0.0.1:{service.port}" in second.stderr
    assert len(second.stderr.splitlines()) == 1
    started = service.all_pids()
    assert len(started) >= 3
    assert service.interrupt() == 130
    assert service.all_pids() == set()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_it_in_order_too(service: Service, number: signal.Signals) -> None:
    service.start()
    assert service.process
    service.process.send_signal(number)
    assert service.process.wait(30) == 128 + number
    assert service.all_pids() == set()


def test_kill_leaves_nothing_and_the_next_start_works(service: Service) -> None:
    service.start()
    service.kill()
    until(lambda: not service.all_pids(), 5, "all processes gone")
    service.start()
    assert service.interrupt() == 130


def test_a_server_that_is_killed_comes_back(service: Service) -> None:
    service.start()
    (server,) = service.running("server")
    os.kill(server, signal.SIGKILL)
    until(lambda: service.running("server") - {server}, 30, "a new server")
    until(lambda: powermean(service.home, "nodes").returncode == 0, 30, "it answers")


def test_a_busy_port_is_one_clear_line(tmp_path: Path) -> None:
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        port = busy.getsockname()[1]
        result = powermean(tmp_path / "home", "up", "--port", str(port))
    assert result.returncode == 1
    assert (
        result.stderr
        == f"powermean: Port {port} is in use: free it, or choose another one with --port {port + 1}\n"
    )
