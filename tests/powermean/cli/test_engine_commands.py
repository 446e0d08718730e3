"""Engines on the command line, against scripted answers."""

import json

import pytest
from typer.testing import Result

from powermean.contracts.engines import EngineService, EngineServiceList, EngineSpec
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.terminal import powermean


def engine(*arguments: str) -> Result:
    return powermean("engine", *arguments)


def service(**changes: object) -> EngineService:
    spec = EngineSpec.model_validate({"name": "smol", "model": {"name": "tiny/model"}})
    made = {"id": "engine-1", "spec": spec, "state": "ready", "generation": 1}
    return EngineService.model_validate(made | {"created_at": "2026-01-01T00:00:00Z"} | changes)


def answer(found: EngineService | EngineServiceList, status: int = 200) -> Answer:
    return Answer(status, found.model_dump_json().encode())


def test_add_declares_what_it_was_given(server: ScriptedServer) -> None:
    server.on("POST /v1/engines", answer(service(state="waiting", why="waiting for a node"), 201))
    result = engine("add", "smol", "--model", "tiny/model", "--max-adapters", "2", "--node", "local")
    assert result.exit_code == 0, result.output
    assert "engine-1  smol: waiting for a node" in result.output
    sent = json.loads(server.requests[0][2])
    assert (sent["model"]["name"], sent["max_adapters"], sent["node"]) == ("tiny/model", 2, "local")
    assert sent["max_model_len"] is None


def test_add_says_what_is_wrong_before_it_asks_anybody(server: ScriptedServer) -> None:
    result = engine("add", "smol", "--max-adapters", "0")
    assert result.exit_code == 1
    assert "model: give exactly one of name and folder" in result.stderr
    assert "max_adapters:" in result.stderr
    assert server.requests == []


def test_list_shows_slots_jobs_and_reasons(server: ScriptedServer) -> None:
    error = {"code": "engine_died", "message": "The engine was killed by SIGKILL."}
    found = (service(jobs=("job-a",), node="local"), service(id="engine-2", state="failed", error=error))
    server.on("GET /v1/engines", answer(EngineServiceList(items=found)))
    result = engine("list")
    assert result.exit_code == 0, result.output
    for words in ("engine-1", "tiny/model", "ready", "1 of 4", "job-a", "killed by SIGKILL"):
        assert words in result.output


@pytest.mark.parametrize("named", ["smol", "engine-1"])
def test_remove_takes_a_name_or_an_id(server: ScriptedServer, named: str) -> None:
    server.on("GET /v1/engines", answer(EngineServiceList(items=(service(),))))
    server.on("DELETE /v1/engines/engine-1", answer(service(state="stopping", jobs=("job-a",)), 202))
    result = engine("remove", named)
    assert result.exit_code == 0, result.output
    assert "smol stops once its jobs have ended: job-a" in result.output
