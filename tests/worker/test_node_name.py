"""A worker whose node's name is another one's takes no tasks, says why, and ends."""

from pathlib import Path

import pytest

from powermean.contracts.api import ErrorBody
from powermean.contracts.names import NODE_NAME_TAKEN
from powermean.rest import ApiError
from worker.inventory import instance
from worker.node import Node, NodeNameTakenError
from worker.settings import NodeSettings

TAKEN = ApiError(409, ErrorBody(code=NODE_NAME_TAKEN, message="node local is another worker's", remedy="x"))


class Server:
    """In place of the client."""

    def __init__(self) -> None:
        self.claims: list[str] = []

    def put_node(self, node_id: str, report: object) -> None:
        raise TAKEN

    def claim(self, attempt_id: str) -> None:
        self.claims.append(attempt_id)


def test_it_ends_and_claims_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[str] = []
    node = Node(NodeSettings(artefacts_url="file:///a", data_dir=tmp_path), lambda: told.append("end"))
    server = Server()
    monkeypatch.setattr(node, "_client", server)
    node.report_for_ever()
    assert told == ["end"]
    assert node.name_taken is not None
    assert "another worker's" in node.name_taken
    assert "another worker's" in caplog.text
    with pytest.raises(NodeNameTakenError):
        node.start("job-a.1")
    assert server.claims == []


def test_a_worker_is_the_same_after_a_restart_and_another_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert instance(tmp_path) == instance(tmp_path) != instance(tmp_path / "other")
