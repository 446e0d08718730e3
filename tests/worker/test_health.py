"""What a container's health check says about its worker."""

import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from powermean.calls import ServerUnreachableError
from powermean.contracts.engines import NodeOrders
from worker import health
from worker.node import Node
from worker.settings import NodeSettings


def said(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "worker.health", *arguments],
        env=os.environ | {"POWERMEAN_DATA_DIR": str(folder)},
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout


def test_a_worker_is_healthy_once_the_server_took_its_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(NodeSettings(artefacts_url="file:///a", data_dir=tmp_path))

    def away(*_: object) -> NodeOrders:
        raise ServerUnreachableError("no route to host", OSError())

    monkeypatch.setattr(node, "_client", SimpleNamespace(put_node=away))
    node.report()
    assert said(tmp_path)[0] == 1
    monkeypatch.setattr(node, "_client", SimpleNamespace(put_node=lambda *_: NodeOrders()))
    node.report()
    assert said(tmp_path)[0] == 0


def test_a_worker_without_a_server_is_alive_and_not_healthy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POWERMEAN_DATA_DIR", str(tmp_path))
    assert health.main(["--alive"]) == 1
    health.note(tmp_path, health.TURNED)
    health.note(tmp_path, health.HEARD)
    old = time.time() - health.HEARD_S - 5
    os.utime(tmp_path / health.HEARD, (old, old))
    capsys.readouterr()
    assert health.main([]) == 1
    assert "last heard by the server 65 s ago" in capsys.readouterr().out
    assert health.main(["--alive"]) == 0


def test_a_turn_is_noted_although_the_server_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node(NodeSettings(artefacts_url="file:///a", data_dir=tmp_path))

    class EndedError(BaseException):
        pass

    answers = iter([ServerUnreachableError("no route to host", OSError()), EndedError()])

    def away(*_: object) -> NodeOrders:
        raise next(answers)

    monkeypatch.setattr(node, "_client", SimpleNamespace(put_node=away))
    monkeypatch.setattr("worker.node.REPORT_S", 0.0)
    with pytest.raises(EndedError):
        node.report_for_ever()
    assert (tmp_path / health.TURNED).exists()
    assert not (tmp_path / health.HEARD).exists()


def test_a_full_disk_does_not_end_the_report(tmp_path: Path) -> None:
    health.note(tmp_path / "not there", health.TURNED)
