"""`python -m worker.doctor` against a real server: what both have to agree on."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from powermean.artefacts import ArtefactStore
from powermean.contracts.artefacts import ArtefactRef
from powermean.contracts.checks import Check
from server import nodes
from server.routes import nodes as routes
from tests.server.conftest import parameters_of_passwords as parameters_of_passwords
from tests.support.real_service import NODE_TOKEN, Service
from worker import doctor
from worker.inventory import instance


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    service = Service(tmp_path_factory.mktemp("service"))
    yield service
    service.close()


@dataclass
class Node:
    """This node's settings, and its doctor."""

    patch: pytest.MonkeyPatch
    capsys: pytest.CaptureFixture[str]

    def setting(self, name: str, value: object) -> None:
        self.patch.setenv(f"POWERMEAN_{name}", str(value))

    def found(self) -> dict[str, Check]:
        """The checks by name; of several with one name the worst."""
        code = doctor.main(["--json"])
        checks = [Check.model_validate_json(one) for one in self.capsys.readouterr().out.splitlines()]
        assert code == int(any(one.verdict == "failed" for one in checks))
        order = ("ok", "warning", "failed")
        return {one.name: one for one in sorted(checks, key=lambda one: order.index(one.verdict))}


@pytest.fixture
def node(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Node:
    for name in [name for name in os.environ if name.startswith("POWERMEAN_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr(doctor, "torch", lambda: [])  # their imports take long: the command's test has them
    monkeypatch.setattr(doctor, "vllm", lambda: [])
    node = Node(monkeypatch, capsys)
    node.setting("SERVER_URL", service.url)
    node.setting("NODE_ID", "node-7")
    node.setting("NODE_TOKEN", NODE_TOKEN)
    node.setting("REDIS_URL", "redis://127.0.0.1:1/0")
    node.setting("ARTEFACTS_URL", service.settings.artefacts_url)
    node.setting("DATA_DIR", tmp_path / "node")
    node.setting("ATTEMPT_PUBLIC_KEY", service.settings.secrets_dir / "attempt_token.pub")
    return node


def test_a_node_that_agrees_with_its_server(node: Node, service: Service) -> None:
    checks = node.found()
    assert checks.keys() >= {"server", "clock", "same store", "data folder", "artefact store", "settings"}
    assert {name for name, one in checks.items() if one.verdict == "failed"} == {"redis"}  # there is none
    store = service.app.state.artefacts
    assert [kind for kind in store.children("probe") if store.list(f"probe/{kind}")] == []


@pytest.mark.parametrize(
    ("address", "verdict", "said"),
    [
        ("127.0.0.1", "ok", "they meet at 127.0.0.1, any free port; for jobs of several nodes"),
        ("127.0.0.2", "ok", "they meet at 127.0.0.2, any free port"),
        ("198.51.100.1", "failed", "which is not an address of this host"),
        ("nowhere.invalid", "failed", "which has no address"),
    ],
)
def test_where_ranks_would_meet(node: Node, address: str, verdict: str, said: str) -> None:
    node.setting("NODE_ADDRESS", address)
    check = node.found()["ranks"]
    assert (check.verdict, said in check.said) == (verdict, True), check.said


def test_a_port_of_ranks_that_is_taken(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        node.setting("RANK_PORT", other.getsockname()[1])
        check = node.found()["ranks"]
    assert check.verdict == "warning"
    assert "is taken" in check.said


def test_another_store_than_the_server_s(node: Node, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'mine'}"
    node.setting("ARTEFACTS_URL", url)
    assert "is not the artefact store" in node.found()["artefact store"].said
    ArtefactStore(url).make()  # as another server does
    check = node.found()["same store"]
    assert check.verdict == "failed"
    assert "the server can't read what this node wrote" in check.said


def test_the_store_s_password_is_not_shown(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    def stored(*_: object) -> ArtefactRef:
        return ArtefactRef(key="probe/x/" + "0" * 64 + "-probe", sha256="0" * 64, size=4)

    monkeypatch.setattr(doctor, "_stored_probe", stored)
    monkeypatch.setattr(doctor, "_remove", lambda *_: None)
    node.setting("ARTEFACTS_URL", "sftp://me:secret@127.0.0.1/x")
    checks = node.found()
    assert "wrote to sftp://***@127.0.0.1/x" in checks["same store"].said
    assert "secret" not in str(checks)


def test_a_wrong_token_another_server_and_none(node: Node, service: Service) -> None:
    node.setting("NODE_TOKEN", "pmn_" + "x" * 43)
    assert node.found()["server"].remedy == "Correct POWERMEAN_NODE_TOKEN."
    node.setting("SERVER_URL", "http://127.0.0.1:1")
    assert "POWERMEAN_SERVER_URL" in (node.found()["server"].remedy or "")
    node.setting("SERVER_URL", "what?")
    assert node.found()["server"].remedy == "Correct POWERMEAN_SERVER_URL."


def test_a_clock_that_is_hours_off(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    late = datetime.now(UTC) + timedelta(hours=3)
    monkeypatch.setattr("server.routes.nodes.database_now", lambda session: late)
    check = node.found()["clock"]
    assert check.verdict == "failed"
    assert "behind the server's" in check.said


def test_a_name_that_is_another_worker_s(node: Node, service: Service, tmp_path: Path) -> None:
    service.node.put(
        "/v1/nodes/node-7",
        json={"hostname": "elsewhere", "instance": "another", "cpu_slots": 1, "version": "0"},
    ).raise_for_status()
    assert "on host elsewhere" in node.found()["name"].said
    data_dir = tmp_path / "node"
    data_dir.mkdir()
    mine = instance(data_dir)
    assert mine != "another"
    (data_dir / "instance").write_text("another")
    assert "name" not in node.found()


def test_another_server_s_signing_key_and_what_is_not_set(node: Node, tmp_path: Path) -> None:
    (tmp_path / "old.pub").write_text("old")
    node.setting("ATTEMPT_PUBLIC_KEY", tmp_path / "old.pub")
    assert node.found()["signing key"].verdict == "failed"
    node.setting("ATTEMPT_PUBLIC_KEY", tmp_path / "none.pub")
    assert "there is no file" in node.found()["settings"].said
    node.patch.delenv("POWERMEAN_ARTEFACTS_URL")
    node.setting("CPU_SLOTS", "many")
    said = node.found()["settings"].said
    assert "POWERMEAN_ARTEFACTS_URL: Field required" in said
    assert "POWERMEAN_CPU_SLOTS" in said


def test_a_signing_key_that_came_as_text(node: Node, service: Service) -> None:
    """So do nodes get it that a pool starts."""
    node.patch.delenv("POWERMEAN_ATTEMPT_PUBLIC_KEY")
    node.setting("ATTEMPT_PUBLIC_KEY_TEXT", (service.settings.secrets_dir / "attempt_token.pub").read_text())
    checks = node.found()
    assert checks["settings"].verdict == "ok"
    assert "signing key" not in checks
    node.setting("ATTEMPT_PUBLIC_KEY_TEXT", "old")
    assert "_TEXT is not the server's" in node.found()["signing key"].said


def test_only_small_objects_of_probes_are_read_for_nodes(service: Service) -> None:
    ref = {"key": "jobs/job-1/" + "0" * 64 + "-weights", "sha256": "0" * 64, "size": 4}
    answer = service.node.post("/v1/nodes/node-1/check", json={"probe": ref})
    assert answer.status_code == 422
    assert service.person.post("/v1/nodes/node-1/check", json={}).status_code in (401, 403)


def test_an_object_that_is_larger_than_it_claims_is_not_read(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = service.app.state.artefacts
    ref = store.put_bytes("probe/large", "probe", b"x" * 2**20)
    monkeypatch.setattr(store, "get_bytes", lambda ref: pytest.fail("the whole object was read"))
    question = {"probe": {"key": ref.key, "sha256": ref.sha256, "size": 100}}
    answer = service.node.post("/v1/nodes/node-1/check", json=question).raise_for_status().json()
    assert answer["probe_error"] == f"there is no object {ref.key} of 100 bytes"


def test_the_store_is_read_outside_any_transaction(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    unreadable, now = nodes.why_unreadable, routes.database_now
    monkeypatch.setattr(nodes, "why_unreadable", lambda *a: events.append("store") or unreadable(*a))
    monkeypatch.setattr(routes, "database_now", lambda session: events.append("database") or now(session))
    assert node.found()["same store"].verdict == "ok"
    assert events == ["store", "database"]


@pytest.mark.slow
def test_the_command_looks_at_what_is_here(tmp_path: Path) -> None:
    """Torch and vLLM are imported in processes of their own; nothing has run in this folder yet."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("POWERMEAN_")}
    environment |= {"POWERMEAN_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-m", "powermean", "doctor", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280)
    of = {
        one["of"]: {check["name"]: check for check in one["checks"]}
        for one in json.loads(done.stdout)["items"]
    }
    assert of["node"]["torch"]["verdict"] == "ok"
    assert of["server"]["database"]["verdict"] == "warning"
    assert "Traceback" not in done.stdout + done.stderr
