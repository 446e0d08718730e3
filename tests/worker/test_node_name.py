"""A worker whose node's name is another one's takes no tasks, says why, and ends."""

import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from powermean.calls import ApiError, ServerUnreachableError
from powermean.contracts.api import ErrorBody
from powermean.contracts.attempts import ClaimWithSecrets, NameRival, NodeReport
from powermean.contracts.engines import NodeOrders
from powermean.contracts.names import NODE_NAME_TAKEN
from powermean.processes import ProcessId
from tests.support.node_claims import claim
from worker.attempt_dir import AttemptDir
from worker.inventory import ReportNumbers, instance
from worker.node import Node, NodeNameTakenError
from worker.settings import NodeSettings

TAKEN = ApiError(409, ErrorBody(code=NODE_NAME_TAKEN, message="node local is another worker's", remedy="x"))


class Server:
    """In place of the client."""

    def __init__(self) -> None:
        self.claims: list[str] = []
        self.leaving: list[bool] = []

    def put_node(self, node_id: str, report: NodeReport) -> None:
        self.leaving.append(report.leaving)
        raise TAKEN

    def claim(self, attempt_id: str, node_id: str, claim_id: str) -> None:
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


def test_one_that_leaves_has_its_attempts_save_and_claims_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No report gets through: its name is another's."""
    settings = NodeSettings(artefacts_url="file:///a", data_dir=tmp_path, term_grace_s=0.5)
    node, server = Node(settings, lambda: None), Server()
    monkeypatch.setattr(node, "_client", server)
    monkeypatch.setattr("worker.node.LEAVING_S", 0.1)
    ends = threading.Thread(target=node.end_attempts, daemon=True)
    ends.start()
    node.report_for_ever()
    attempt = tmp_path / "attempts" / "job-a.1"
    attempt.mkdir(parents=True)
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as supervisor:
        AttemptDir(attempt).write_supervisor(ProcessId.of(supervisor.pid))
        node.leave()
        try:
            assert supervisor.wait(10) == -signal.SIGTERM
        finally:
            supervisor.kill()
    node.report_for_ever()
    assert server.leaving == [False, True]
    node.await_attempts()
    node.start("job-a.2")
    assert server.claims == []
    ends.join(10)


def test_what_it_claimed_as_it_was_told_to_leave_is_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = NodeSettings(artefacts_url="file:///a", data_dir=tmp_path, pilot="gpu-1")
    node, given, ends = Node(settings), claim().model_copy(update={"node_rank": 1}), []

    def late(*_: str) -> ClaimWithSecrets:
        node.leave()
        return ClaimWithSecrets(claim=given)

    monkeypatch.setattr(node, "_client", SimpleNamespace(claim=late, put_node=lambda *_: NodeOrders()))
    client = SimpleNamespace(finish=ends.append)
    monkeypatch.setattr("worker.node.AttemptClient", lambda *_: nullcontext(client))
    node.start(given.attempt_id)
    assert [(end.outcome, end.node_rank, end.reason) for end in ends] == [
        ("checkpointed", 1, "allocation gpu-1 was being ended; its training had not begun")
    ]
    assert not (tmp_path / "attempts").exists()


def test_a_claim_without_an_answer_is_repeated_under_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.node.CLAIM_PAUSES_S", (0.0, 0.0))
    node, tried = Node(NodeSettings(artefacts_url="file:///a", data_dir=tmp_path)), []

    def claim(attempt_id: str, node_id: str, claim_id: str) -> None:
        tried.append((attempt_id, node_id, claim_id))
        raise ServerUnreachableError("http://s", "slow") if len(tried) < 3 else TAKEN

    monkeypatch.setattr(node, "_client", SimpleNamespace(claim=claim, put_node=lambda *_: NodeOrders()))
    node.start("job-a.1")
    node.start("job-a.2")
    assert tried[0] == tried[1] == tried[2]
    assert len({claim_id for _, _, claim_id in tried}) == 2
    assert tried[0][2]


def test_a_worker_that_was_restarted_counts_its_reports_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts, clock = tmp_path / "starts", iter((1000, 1000, 999, 1003, 1004, 2**32 - 1))
    monkeypatch.setattr("worker.inventory.time", SimpleNamespace(time=clock.__next__), raising=False)
    first, again, set_back = (ReportNumbers(tmp_path) for _ in range(3))
    numbers = [first.next(), first.next(), again.next(), set_back.next()]
    for put_back in ("5", "1000", "not a number"):
        starts.write_text(put_back)
        numbers.append(ReportNumbers(tmp_path).next())
    assert None not in numbers
    assert numbers == sorted({one or 0 for one in numbers})
    assert (numbers[-1] or 0) < 2**63


def test_it_says_who_else_tries_to_use_its_name_and_not_every_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    start = datetime(2026, 11, 27, 12, tzinfo=UTC)
    rivals = [
        None,
        NameRival(hostname="other", at=start),  # said
        NameRival(hostname="other", at=start),
        NameRival(hostname="other", at=start + timedelta(minutes=5)),  # a process manager starts it again
        NameRival(hostname="other", at=start + timedelta(minutes=11)),  # said
        NameRival(hostname="third", at=start + timedelta(minutes=12)),  # said
        None,
    ]
    orders = iter(NodeOrders(rival=rival) for rival in rivals)
    node = Node(NodeSettings(artefacts_url="file:///a", data_dir=tmp_path))
    monkeypatch.setattr(node, "_client", SimpleNamespace(put_node=lambda *_: next(orders)))
    for _ in rivals:
        node.report()
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.partition(" tried")[0].rpartition(" ")[2].strip(",") for line in said] == [
        "other",
        "other",
        "third",
    ]
    assert all("was refused" in line and "POWERMEAN_NODE_ID" in line for line in said)


def test_a_worker_is_the_same_after_a_restart_and_another_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    assert instance(tmp_path) == instance(tmp_path) != instance(tmp_path / "other")
