"""Nodes on the command line, against scripted answers."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from powermean.cli.main import app
from powermean.contracts.api import ErrorBody, ErrorResponse, NodeList, NodeView
from powermean.contracts.attempts import AttemptUse, GpuInfo
from tests.support.scripted_server import Answer, ScriptedServer


def test_a_node_is_removed_by_its_name(server: ScriptedServer) -> None:
    server.on("DELETE /v1/nodes/gpu-7", Answer(204))
    result = CliRunner().invoke(app, ("node", "remove", "gpu-7"))
    assert (result.exit_code, result.output) == (0, "gpu-7 is removed\n")


def test_one_that_is_alive_is_refused_with_the_remedy(server: ScriptedServer) -> None:
    error = ErrorBody(code="conflict", message="node gpu-7 is alive", remedy="Stop its worker first.")
    server.on("DELETE /v1/nodes/gpu-7", Answer(409, ErrorResponse(error=error).model_dump_json().encode()))
    result = CliRunner().invoke(app, ("node", "remove", "gpu-7"))
    assert (result.exit_code, result.stderr) == (
        1,
        "powermean: node gpu-7 is alive\nStop its worker first.\n",
    )


NOW = datetime(2026, 11, 27, 12, tzinfo=UTC)
NODE = NodeView(
    id="gpu-7",
    hostname="seven",
    gpus=(
        GpuInfo(uuid="GPU-1", name="NVIDIA H100", memory_mb=81_559, memory_used_mb=1024, utilisation=97),
        GpuInfo(uuid="GPU-2", name="NVIDIA H100", memory_mb=81_559, unhealthy="slowed down by its heat"),
    ),
    cpu_slots=2,
    engines=("vllm",),
    labels={"zone": "a"},
    version="0",
    alive=True,
    seen_at=NOW,
    closed="draining",
    closed_reason="kernel update",
    drain_at=NOW,
    attempts=("job-a.1",),
    other_attempts=1,
    use=(AttemptUse(attempt_id="job-a.1", cpu=1.5, memory_mb=2048),),
    missing_gpus=("GPU-3",),
    blind=("Xid errors",),
)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def sent(server: ScriptedServer) -> Any:
    """The body of the last request."""
    return json.loads(server.requests[-1][2])


def answer(**changes: object) -> Answer:
    return Answer(200, NODE.model_copy(update=changes).model_dump_json().encode())


def test_a_node_is_shown_with_its_gpus_and_what_runs_there(server: ScriptedServer) -> None:
    server.on("GET /v1/nodes/gpu-7", answer())
    shown = run("node", "show", "gpu-7")
    assert shown.exit_code == 0, shown.output
    for words in (
        "on host seven, alive, draining (kernel update)",
        "labels: zone=a",
        "79.6 GiB",
        "97 %",
        "slowed down by its heat",
        "runs job-a.1: 1.5 cores, 2.0 GiB",
        "runs 1 of other projects",
    ):
        assert words in shown.stdout
    assert "GPU-3 is held by an attempt" in shown.stderr
    assert "not seen there: Xid errors" in shown.stderr


@pytest.mark.parametrize("command", [("nodes",), ("node", "list")])
def test_the_list_says_who_is_closed_and_ill(server: ScriptedServer, command: tuple[str, ...]) -> None:
    server.on("GET /v1/nodes", Answer(200, NodeList(items=(NODE,)).model_dump_json().encode()))
    listed = run(*command)
    assert "alive, draining (kernel update)" in listed.stdout
    assert "2, 1 unhealthy" in listed.stdout


def test_nodes_are_closed_and_opened(server: ScriptedServer) -> None:
    server.on("POST /v1/nodes/gpu-7/cordon", answer(closed="cordoned", drain_at=None))
    assert run("node", "cordon", "gpu-7", "--reason", "fan").output == (
        "gpu-7 is alive, cordoned (kernel update)\n"
    )
    assert sent(server) == {"reason": "fan"}
    server.on("POST /v1/nodes/gpu-7/drain", answer(drained=True))
    assert run("node", "drain", "gpu-7").output == "gpu-7 is alive, drained (kernel update)\n"
    assert sent(server) == {"reason": None, "at": None}
    server.on("POST /v1/nodes/gpu-7/uncordon", answer(closed=None, closed_reason=None, drain_at=None))
    assert run("node", "uncordon", "gpu-7").output == "gpu-7 is alive\n"


def test_a_drain_at_a_time_has_a_time_zone(server: ScriptedServer) -> None:
    server.on("POST /v1/nodes/gpu-7/drain", answer(closed=None, drain_at=NOW))
    said = run("node", "drain", "gpu-7", "--at", "2026-12-01T22:00:00+01:00")
    assert "gpu-7 is alive, drains from " in said.output
    assert sent(server)["at"] == "2026-12-01T22:00:00+01:00"
    run("node", "drain", "gpu-7", "--at", "2026-12-01 22:00")
    assert datetime.fromisoformat(sent(server)["at"]) == datetime(2026, 12, 1, 22).astimezone()
    assert run("node", "drain", "gpu-7", "--at", "tonight").exit_code == 2
