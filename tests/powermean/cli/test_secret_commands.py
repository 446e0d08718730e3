"""Secrets on the command line, against scripted answers."""

import json
from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from powermean.cli.main import app
from powermean.contracts.api import ErrorBody, ErrorResponse
from powermean.contracts.secrets import SecretList, SecretView
from tests.support.scripted_server import Answer, ScriptedServer

VALUE = "hf_0123456789abcdefghij"
VIEW = SecretView.model_validate({"name": "hf", "set_by": "Ada", "set_at": "2026-01-01T00:00:00Z"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.start()
    monkeypatch.setenv("POWERMEAN_URL", scripted.url)
    monkeypatch.setenv("POWERMEAN_API_KEY", "pm_key")
    yield scripted
    scripted.stop()


@pytest.mark.parametrize(
    ("options", "path", "named"),
    [
        (("--project", "team-a"), "/v1/projects/team-a/secrets/hf", "as hf"),
        ((), "/v1/me/secrets/hf", "as me/hf"),
    ],
)
def test_the_value_comes_from_standard_input(
    server: ScriptedServer, options: tuple[str, ...], path: str, named: str
) -> None:
    server.on(f"PUT {path}", Answer(200, VIEW.model_dump_json().encode()))
    result = CliRunner().invoke(app, ("secret", "set", "hf", *options), input=f"{VALUE}\n")
    assert result.exit_code == 0, result.output
    assert named in result.output
    assert VALUE not in result.output
    assert json.loads(server.requests[0][2]) == {"value": VALUE}


def test_the_value_is_no_argument(server: ScriptedServer) -> None:
    result = CliRunner().invoke(app, ("secret", "set", "hf", VALUE))
    assert result.exit_code == 2
    assert server.requests == []


def test_an_empty_value_is_not_sent(server: ScriptedServer) -> None:
    result = CliRunner().invoke(app, ("secret", "set", "hf"), input="\n")
    assert (result.exit_code, server.requests) == (1, [])


def test_the_list_says_who_and_when(server: ScriptedServer) -> None:
    server.on("GET /v1/me/secrets", Answer(200, SecretList(items=(VIEW,)).model_dump_json().encode()))
    result = CliRunner().invoke(app, ("secret", "list"))
    assert result.exit_code == 0, result.output
    for words in ("hf", "Ada", "never"):
        assert words in result.output


def test_removing_one_in_use_says_by_which_jobs(server: ScriptedServer) -> None:
    error = ErrorBody(code="conflict", message="secret hf is named by jobs that have not ended: job-a")
    body = ErrorResponse(error=error).model_dump_json().encode()
    server.on("DELETE /v1/projects/team-a/secrets/hf", Answer(409, body))
    result = CliRunner().invoke(app, ("secret", "remove", "hf", "--project", "team-a"))
    assert result.exit_code == 1
    assert "job-a" in result.stderr
