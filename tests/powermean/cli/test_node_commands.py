"""Nodes on the command line, against scripted answers."""

from typer.testing import CliRunner

from powermean.cli.main import app
from powermean.contracts.api import ErrorBody, ErrorResponse
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
