"""A node whose disk is full takes no job's word for its faults, and gives back what it can't start."""

import errno
from pathlib import Path
from typing import Any

import pytest

from powermean.artefacts import ArtefactStoreUnavailableError
from powermean.contracts.attempts import (
    ClaimWithSecrets,
    Finish,
    JobError,
    ValidationResult,
    ValidationTask,
    ValidationWithSecrets,
)
from tests.support.node_claims import claim
from worker import node as nodes
from worker.attempt_dir import AttemptDir
from worker.node import Node
from worker.settings import NodeSettings


class Server:
    """In place of the clients."""

    def __init__(self) -> None:
        self.results: list[ValidationResult] = []
        self.ends: list[Finish] = []

    def put_node(self, node_id: str, report: object) -> Any:
        raise ConnectionError

    def validation(self, job_id: str) -> ValidationWithSecrets:
        return ValidationWithSecrets(task=ValidationTask(job_id=job_id, spec=claim().spec))

    def post_validation(self, job_id: str, result: ValidationResult) -> None:
        self.results.append(result)

    def claim(self, attempt_id: str, node_id: str, claim_id: str) -> ClaimWithSecrets:
        return ClaimWithSecrets(claim=claim())

    def finish(self, end: Finish) -> None:
        self.ends.append(end)

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()
    monkeypatch.setattr(nodes, "NodeClient", lambda *_: made)
    monkeypatch.setattr(nodes, "AttemptClient", lambda *_: made)
    return made


@pytest.fixture
def node(tmp_path: Path, server: Server, monkeypatch: pytest.MonkeyPatch) -> Node:
    made = Node(NodeSettings(artefacts_url="file:///a", data_dir=tmp_path))
    monkeypatch.setattr(made, "_accepted", float("inf"))
    return made


def test_a_check_that_fails_on_a_full_disk_is_not_told(
    node: Node, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = ValidationResult(errors=(JobError(code="disk_full", message="no room for the model"),))
    monkeypatch.setattr(nodes, "check", lambda task, secrets: failed)
    monkeypatch.setattr(nodes, "full_disk", lambda settings: "/data")
    node.validate("job-a")
    assert server.results == []
    monkeypatch.setattr(nodes, "full_disk", lambda settings: None)
    node.validate("job-a")
    assert server.results == [failed]


def test_a_store_that_is_away_is_told_apart_from_what_is_wrong_with_the_spec(
    node: Node, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = ArtefactStoreUnavailableError("no answer from sftp://me:secret@host").error
    wrong = JobError(code="unknown_model", message="there is none")
    for errors in ((away,), (away, wrong)):
        monkeypatch.setattr(nodes, "check", lambda *_, errors=errors: ValidationResult(errors=errors))
        node.validate("job-a")
    assert [result.errors for result in server.results] == [(), (wrong,)]
    assert {result.store_error for result in server.results} == {"node local: no answer from sftp://***@host"}


def test_an_attempt_whose_folder_has_no_room_is_given_back_at_once(
    node: Node, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(path: Path, claim: object) -> AttemptDir:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(AttemptDir, "create", no_room)
    node.start("job-a.1")
    (end,) = server.ends
    assert end.error is not None
    assert (end.outcome, end.error.code, end.retryable) == ("failed", "disk_full", True)
