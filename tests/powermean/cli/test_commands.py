"""The client side of the command line, against scripted answers."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from powermean.cli.main import COMMANDS, OLD_COMMANDS, app
from powermean.contracts.api import JobPage, JobState, JobSummary
from powermean.contracts.renaming import Deprecation
from powermean.contracts.replays import AskedReplay
from tests.support.sample_jobs import SPEC, job
from tests.support.sample_replays import replay_result, sample_replay
from tests.support.sample_staleness import sample_staleness
from tests.support.scripted_server import Answer, ScriptedServer

ERROR = {"code": "out_of_memory", "message": "the model does not fit", "remedy": "take a smaller one"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.start()
    monkeypatch.setenv("POWERMEAN_URL", scripted.url)
    monkeypatch.setenv("POWERMEAN_API_KEY", "pm_key")
    yield scripted
    scripted.stop()


def powermean(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def body(state: JobState, **changes: object) -> Answer:
    return Answer(body=job(state, **changes).model_dump_json().encode())


@pytest.mark.parametrize(
    "command",
    [
        *[(c,) for c in COMMANDS if c not in ("datasets", "engine", "node")],
        *[("datasets", c) for c in ("upload", "list")],
        *[("engine", c) for c in ("add", "list", "remove")],
        ("node", "remove"),
    ],
)
def test_help_teaches_by_example(command: tuple[str, ...]) -> None:
    result = powermean(*command, "--help")
    assert result.exit_code == 0
    assert f"Example: powermean {' '.join(command)}" in result.output


@pytest.mark.parametrize("command", COMMANDS)
def test_the_list_of_commands_says_what_their_own_help_says(command: str) -> None:
    assert " ".join(COMMANDS[command][1].split()) in " ".join(powermean(command, "--help").output.split())


def test_help_imports_neither_http_nor_contracts_nor_a_room() -> None:
    """It answers at once; and no room is ever imported here, they are started as processes."""
    script = (
        "import sys; sys.argv = ['powermean', '--help']\n"
        "from powermean.cli.main import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'httpx', 'pydantic', 'server', 'trainer', 'rollout', 'dashboard', 'torch'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "from powermean.cli import cluster, demo, jobs, service\n"
        "assert not (heavy - {'httpx', 'pydantic'}) & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "demo" in done.stdout


def test_list_shows_jobs(server: ScriptedServer) -> None:
    summary = JobSummary.model_validate(job(last_reward=0.5).model_dump(include=set(JobSummary.model_fields)))
    server.on("GET /v1/jobs", Answer(body=JobPage(items=(summary,)).model_dump_json().encode()))
    result = powermean("list", "--state", "running")
    assert "job-a" in result.output
    assert "0.50" in result.output
    assert server.requests[0][0] == "GET /v1/jobs?state=running&limit=20"


def test_watch_ends_with_success_when_the_job_finished(server: ScriptedServer) -> None:
    server.on("GET /v1/jobs/job-a", body(JobState.FINISHED))
    server.on("GET /v1/jobs/job-a/metrics", Answer(body=b'{"series": [], "seq": 0}'))
    server.on("GET /v1/jobs/job-a/events", Answer(204))
    assert powermean("watch", "job-a").exit_code == 0


def test_watch_ends_with_the_reason_when_the_job_failed(server: ScriptedServer) -> None:
    server.on("GET /v1/jobs/job-a", body(JobState.FAILED, error=ERROR))
    server.on("GET /v1/jobs/job-a/metrics", Answer(body=b'{"series": [], "seq": 0}'))
    server.on("GET /v1/jobs/job-a/events", Answer(204))
    result = powermean("watch", "job-a")
    assert result.exit_code == 1
    assert "out_of_memory: the model does not fit\ntake a smaller one" in result.stderr


def test_submit_tells_the_servers_refusal_with_the_files_line(server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    file.write_text(SPEC.model_dump_json(exclude_unset=True, indent=1))
    fields = [{"path": "model.name", "message": "unknown model"}]
    refusal = {"error": {"code": "invalid", "message": "no", "fields": fields}}
    server.on("POST /v1/jobs", Answer(422, json.dumps(refusal).encode()))
    result = powermean("submit", str(file))
    assert result.exit_code == 1
    assert f"{file}:4: model.name: unknown model" in result.stderr


def test_submit_does_not_send_what_cannot_be_right(server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("name: x\n")
    assert powermean("submit", str(file)).exit_code == 1
    assert server.requests == []


def test_logs_prints_all_parts(server: ScriptedServer) -> None:
    parts = [("one\n", 4), ("two\n", 8), ("", 8)]
    answers = [{"attempt": 1, "offset": 0, "next_offset": n, "text": text} for text, n in parts]
    server.on("GET /v1/jobs/job-a/logs", *[Answer(body=json.dumps(answer).encode()) for answer in answers])
    assert powermean("logs", "job-a").stdout == "one\ntwo\n"


def test_download_verifies(server: ScriptedServer, tmp_path: Path) -> None:
    good = b"{}"
    ref = {"key": "a", "sha256": hashlib.sha256(good).hexdigest(), "size": 2}
    server.on("GET /v1/jobs/job-a/files", Answer(body=json.dumps({"files": {"config.json": ref}}).encode()))
    server.on("GET /v1/jobs/job-a/files/config.json", Answer(body=b"[]"), Answer(body=good))
    refused = powermean("download", "job-a", "--to", str(tmp_path))
    assert refused.exit_code == 1
    assert "damaged" in refused.stderr
    assert not (tmp_path / "config.json").exists()
    assert powermean("download", "job-a", "--to", str(tmp_path)).exit_code == 0
    assert (tmp_path / "config.json").read_bytes() == good


def test_download_stays_in_its_folder(server: ScriptedServer, tmp_path: Path) -> None:
    ref = {"key": "a", "sha256": "0" * 64, "size": 2}
    server.on("GET /v1/jobs/job-a/files", Answer(body=json.dumps({"files": {"../evil": ref}}).encode()))
    result = powermean("download", "job-a", "--to", str(tmp_path / "model"))
    assert result.exit_code == 1
    assert "outside" in result.stderr


def test_login_prints_a_link(server: ScriptedServer) -> None:
    code = {"code": "abc", "expires_at": "2026-01-01T00:00:00Z"}
    server.on("POST /v1/login-codes", Answer(body=json.dumps(code).encode()))
    assert f"{server.url}/login/abc" in powermean("login").output


def test_without_a_server_there_is_one_clear_remedy(server: ScriptedServer) -> None:
    server.stop()
    result = powermean("nodes")
    assert result.exit_code == 1
    assert "Start it with `powermean up`" in result.stderr


def test_without_a_key_there_is_one_clear_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERMEAN_HOME", str(tmp_path))
    monkeypatch.delenv("POWERMEAN_API_KEY", raising=False)
    result = powermean("nodes")
    assert result.exit_code == 1
    assert "POWERMEAN_API_KEY" in result.stderr


def test_staleness_is_a_table_by_staleness(server: ScriptedServer) -> None:
    server.on("GET /v1/jobs/job-a/staleness", Answer(body=sample_staleness().model_dump_json().encode()))
    result = powermean("staleness", "job-a", "--steps", "50")
    assert result.exit_code == 0
    lines = result.output.splitlines()
    assert lines[0] == "steps 3 to 9"
    assert lines[1].split()[:3] == ["stale", "n", "mixed"]
    assert [line.split()[:6] for line in lines[2:]] == [
        ["0", "32", "0", "-", "0.90", "0.80"],
        ["1", "32", "1", "0.85", "0.70", "0.60"],
        ["2", "32", "2", "0.75", "0.50", "0.40"],
    ]
    assert server.requests[0][0] == "GET /v1/jobs/job-a/staleness?steps=50"
    whole = json.loads(powermean("staleness", "job-a", "--json").output)
    assert whole == sample_staleness().model_dump(mode="json", by_alias=True)
    assert whole["rows"][2]["lag"] == whole["rows"][2]["staleness"] == 2  # scripts read the old name too


@pytest.mark.parametrize(("old", "new"), OLD_COMMANDS.items())
def test_an_old_command_works_hidden_with_a_note(server: ScriptedServer, old: str, new: str) -> None:
    server.on(f"GET /v1/jobs/job-a/{new}", Answer(body=sample_staleness().model_dump_json().encode()))
    result = powermean(old, "job-a")
    assert result.exit_code == 0
    assert result.stdout == powermean(new, "job-a").stdout
    note = f"powermean: powermean {old} is now powermean {new}; the old name works until 1.0\n"
    assert result.stderr == note
    assert f" {old} " not in powermean("--help").output


def test_a_replay_says_which_fields_have_new_names(server: ScriptedServer) -> None:
    told = Deprecation(path="set.sampler_weight", replacement="set.x", message="it is now x")
    asked = AskedReplay(**dict(sample_replay()), deprecations=(told,))
    server.on("POST /v1/jobs/job-a/replays", Answer(body=asked.model_dump_json().encode()))
    path = f"GET /v1/jobs/job-a/replays/{asked.id}/result"
    server.on(path, Answer(body=replay_result().model_dump_json().encode()))
    result = powermean("replay", "job-a", "--step", "3", "--set", "sampler_weight=token")
    assert result.stderr == "powermean: it is now x\n"
