"""The client side of the command line, against scripted answers."""

import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from typer.testing import Result

from powermean.cli.main import OLD_COMMANDS
from powermean.contracts.api import (
    Dataset,
    DatasetList,
    FieldError,
    JobPage,
    JobState,
    JobSummary,
    LoginCode,
    NodeList,
)
from powermean.contracts.artefacts import Manifest
from powermean.contracts.engines import EngineServiceList
from powermean.contracts.forks import Origin
from powermean.contracts.renaming import Deprecation
from powermean.contracts.replays import AskedReplay
from tests.support.sample_jobs import SPEC, job, summaries
from tests.support.sample_replays import replay_result, sample_replay
from tests.support.sample_staleness import sample_staleness
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.terminal import powermean

SUMMARY = set(JobSummary.model_fields)
ERROR = {"code": "out_of_memory", "message": "the model does not fit", "remedy": "take a smaller one"}


def body(state: JobState, **changes: object) -> Answer:
    return Answer(body=job(state, **changes).model_dump_json().encode())


def test_the_servers_are_listed_with_who_leads(server: ScriptedServer) -> None:
    at = "2026-11-27T09:00:00Z"
    rows = [
        {"id": name, "name": name, "version": "0.1.0", "started_at": at, "seen_at": at}
        | {"alive": name != "c:8700", "leads": name == "b:8700"}
        for name in ("a:8700", "b:8700", "c:8700")
    ]
    server.on("GET /v1/servers", Answer(body=json.dumps({"items": rows}).encode()))
    lines = powermean("server", "list").output.splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [
        ["a:8700", "serves"],
        ["b:8700", "leads"],
        ["c:8700", "dead"],
    ]


def test_show_tells_a_jobs_line(server: ScriptedServer) -> None:
    fork = {"job": "job-c", "name": "further", "state": "running", "step": 4}
    lines: dict[str, Any] = {"forked_from": {"job": "job-b", "step": None}, "forks": (fork,)}
    lines |= {"project": "vision", "created_by": "person-ada", "preemptions": 1}
    spec = {**job().model_dump(mode="json")["spec"], "checkpoints": {"best": "eval/reward", "every": 1}}
    spec["evaluation"] = {"every": 1}
    lines |= {"held_out_before": 0.25, "held_out": 0.5, "spec": spec}
    at = {"attempt": 1, "size": 1, "created_at": "2026-01-01T00:00:00Z", "metric": "eval/reward"}
    kept = [at | {"step": 3, "value": 0.75, "best": True}, at | {"step": 4, "value": 0.5}]
    server.on("GET /v1/jobs/job-a/checkpoints", Answer(body=json.dumps({"items": kept}).encode()))
    server.on("GET /v1/jobs/job-a", body(JobState.FINISHED, **lines))
    said = powermean("show", "job-a").output
    assert "forked from job-b\n" in said
    assert "forked by job-c  further (running), from step 4\n" in said
    assert "\nproject vision, submitted 20" in said
    assert "\nheld-out reward 0.25 -> 0.50 (at most 128 problems)\n" in said
    assert "\nbest checkpoint: step 3, eval/reward 0.7500\n" in said
    assert said.count("best checkpoint") == 1
    assert " by person-ada\npriority normal, gave way 1 time\n" in said


def test_what_is_wrong_with_an_uploaded_file_names_it(server: ScriptedServer, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.touch()
    cases = {"file": f"{rows}: why", "line 7": f"{rows}, line 7: why", "name": "name: why"}
    for path in cases:
        error = {"code": "invalid", "message": f"{path}: why", "fields": [{"path": path, "message": "why"}]}
        server.on("POST /v1/datasets", Answer(422, json.dumps({"error": error}).encode()))
    for named in cases.values():
        assert powermean("datasets", "upload", str(rows)).stderr == f"powermean: {named}\n"


def test_a_failed_jobs_field_is_named_once(server: ScriptedServer) -> None:
    for message in ("too high", "training.steps: too high\nseed: too low"):
        error = {"code": "invalid", "message": message, "path": "training.steps", "remedy": None}
        server.on("GET /v1/jobs/job-a", body(JobState.FAILED, error=error))
        assert powermean("show", "job-a").output.count("training.steps: too high") == 1
        assert "training.steps: training.steps" not in powermean("show", "job-a").output


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
    server.on("POST /v1/jobs/text", Answer(422, json.dumps(refusal).encode()))
    result = powermean("submit", str(file))
    assert result.exit_code == 1
    assert f"{file}:4: model.name: unknown model" in result.stderr


def test_submit_does_not_send_what_cannot_be_right(server: ScriptedServer, tmp_path: Path) -> None:
    file = tmp_path / "spec.yaml"
    file.write_text("name: x\n")
    assert powermean("submit", str(file)).exit_code == 1
    assert server.requests == []


@pytest.mark.parametrize("path", ["model.lora.rank", "resources.gpus"])
def test_nothing_is_exported_by_a_default_that_nobody_chose(
    server: ScriptedServer, tmp_path: Path, path: str
) -> None:
    refused = (FieldError(path=path, message="too large"),)
    server.on("GET /v1/jobs/job-a", body(JobState.FINISHED, spec_refused=refused))
    origin = Origin(job_id="job-a", step=5, kind="weights", files=Manifest(files={}))
    server.on("GET /v1/jobs/job-a/checkpoints/5/files", Answer(body=origin.model_dump_json().encode()))
    said = powermean("export", "job-a@5", "--to", str(tmp_path / "model"))
    assert said.exit_code == 1
    assert f"{path}: too large" in said.stderr
    assert "Export the final model" in said.stderr
    assert not (tmp_path / "model").exists()


LISTS: dict[tuple[str, ...], tuple[str, BaseModel]] = {
    ("list",): ("GET /v1/jobs", JobPage(items=(JobSummary(**job().model_dump(include=SUMMARY)),))),
    ("show", "job-a"): ("GET /v1/jobs/job-a", job()),
    ("cancel", "job-a"): ("POST /v1/jobs/job-a/cancel", job(JobState.CANCELLED)),
    ("nodes",): ("GET /v1/nodes", NodeList(items=())),
    ("datasets", "list"): ("GET /v1/datasets", DatasetList(items=())),
    ("engine", "list"): ("GET /v1/engines", EngineServiceList(items=())),
    ("login",): (
        "POST /v1/login-codes",
        LoginCode(code="abc", url="http://x/login/abc", expires_at=datetime(2026, 1, 1, tzinfo=UTC)),
    ),
    ("staleness", "job-a"): ("GET /v1/jobs/job-a/staleness", sample_staleness()),
}


@pytest.mark.parametrize("command", LISTS)
def test_json_is_the_apis_answer(server: ScriptedServer, command: tuple[str, ...]) -> None:
    request, answer = LISTS[command]
    server.on(request, Answer(body=answer.model_dump_json().encode()))
    result = powermean(*command, "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == answer.model_dump(mode="json", by_alias=True)


def test_watch_prints_events_as_lines_of_json(server: ScriptedServer) -> None:
    ended = job(JobState.FINISHED, seq=2)
    server.on("GET /v1/jobs/job-a", Answer(body=ended.model_dump_json().encode()))
    state = json.dumps(ended.model_dump(mode="json", include=SUMMARY))
    frames = f"id: 1\nevent: rewind\ndata: {{}}\n\nid: 2\nevent: state\ndata: {state}\n\n"
    server.on("GET /v1/jobs/job-a/events", Answer(body=frames.encode(), kind="text/event-stream"))
    result = powermean("watch", "job-a", "--json")
    assert result.exit_code == 0, result.output
    assert [json.loads(line)["kind"] for line in result.stdout.splitlines()] == ["rewind", "state"]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (JobState.RUNNING, "job-a is being cancelled"),
        (JobState.CANCELLED, "job-a cancelled"),
        (JobState.FINISHED, "job-a had ended already: finished"),
    ],
)
def test_what_a_cancel_did_is_said(server: ScriptedServer, state: JobState, said: str) -> None:
    server.on("POST /v1/jobs/job-a/cancel", Answer(body=job(state).model_dump_json().encode()))
    assert powermean("cancel", "job-a").stdout.strip() == said


@pytest.mark.slow
def test_lists_go_through_all_pages(server: ScriptedServer) -> None:
    one = Dataset(
        id="ds-1", name="a", rows=1, fields=(), sha256="0" * 64, size=1, project="default",
        created_at="2026-01-01T00:00Z",
    )  # fmt: skip
    pages = [
        DatasetList(items=(one,) * 200, next="2026/ds-1"),
        DatasetList(items=(one.model_copy(update={"id": "ds-2"}),) * 5),
    ]
    server.on("GET /v1/datasets", *[Answer(body=page.model_dump_json().encode()) for page in pages])
    lines = powermean("datasets", "list").stdout.splitlines()
    assert len([line for line in lines if line.startswith("ds-")]) == 205
    assert [line for line, _, _ in server.requests] == [
        "GET /v1/datasets?limit=200",
        "GET /v1/datasets?cursor=2026%2Fds-1&limit=200",
    ]


@pytest.mark.parametrize("kind", ["dataset", "node"])
def test_what_is_gone_can_be_removed(server: ScriptedServer, kind: str) -> None:
    server.on(f"DELETE /v1/{kind}s/one", Answer(204))
    result = powermean({"dataset": "datasets", "node": "node"}[kind], "remove", "one")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one is removed\n"


def test_what_a_limit_leaves_out_is_said(server: ScriptedServer) -> None:
    page = json.loads(summaries(job(), job()))
    server.on("GET /v1/jobs", Answer(body=json.dumps(page | {"next": "more"}).encode()))
    result = powermean("list", "--limit", "2")
    assert result.stderr == "There are more jobs: raise --limit.\n"
    assert [line for line, _, _ in server.requests] == ["GET /v1/jobs?limit=2"]


@pytest.mark.slow
def test_logs_that_are_followed_go_on_after_a_restart(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("powermean.client.RETRY_S", 0.0)
    monkeypatch.setattr("powermean.client.LOG_POLL_S", 0.0)
    down = Answer(503, b"down")
    jobs = [
        body(JobState.RUNNING),
        body(JobState.RUNNING),
        down,
        body(JobState.RUNNING),
        down,
        body(JobState.FINISHED),
    ]
    server.on("GET /v1/jobs/job-a", *jobs)
    parts = [("one\n", 4), ("two\x1b[2J\n", 8), ("", 8)]
    answers = [json.dumps({"attempt": 1, "offset": 0, "next_offset": n, "text": text}) for text, n in parts]
    server.on("GET /v1/jobs/job-a/logs", *[Answer(body=answer.encode()) for answer in answers])
    result = powermean("logs", "job-a", "-f")
    assert result.exit_code == 0, result.output
    assert result.stdout == "one\ntwo\\u001b[2J\n"


def test_logs_of_no_server_are_not_waited_for(server: ScriptedServer) -> None:
    server.stop()
    assert "Is the service running?" in powermean("logs", "job-a", "-f").stderr


def validated(file: Path, **model: str) -> Result:
    spec = SPEC.model_dump(mode="json", exclude_unset=True) | {"model": model}
    file.write_text(json.dumps(spec, indent=1))
    return powermean("validate", str(file))


@pytest.mark.slow
def test_validate_finds_a_models_typo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes a second: the trainer's room answers, and the command line imports none."""
    file, typo = tmp_path / "spec.json", "HuggingFaceTB/SmolLM2-135-Instruct"
    monkeypatch.delenv("POWERMEAN_URL", raising=False)
    refused = validated(file, name=typo)
    assert refused.exit_code == 1
    meant = "did you mean HuggingFaceTB/SmolLM2-135M-Instruct?"
    assert f"{file}:4: model.name: unknown model '{typo}': {meant}" in refused.stderr


def test_validate_says_what_it_could_not_look_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POWERMEAN_MODEL_ROOTS", raising=False)
    result = validated(tmp_path / "spec.json", folder="mine")
    assert result.exit_code == 0
    assert "valid (pmpo, 2 steps)" in result.stdout
    assert "folder is not looked for: POWERMEAN_MODEL_ROOTS is not set" in result.stderr


def test_a_misspelt_value_of_an_option_comes_with_the_one_that_was_meant() -> None:
    refused = powermean("list", "--state", "runing")
    assert refused.exit_code == 2
    assert "'runing' is not one of validating, queued," in refused.stderr
    assert "cancelled: did you mean running?" in " ".join(refused.stderr.split())


def test_remedies_name_commands(server: ScriptedServer) -> None:
    error = {"code": "not_found", "message": "no job job-a", "remedy": "GET /v1/jobs lists the jobs."}
    server.on("GET /v1/jobs/job-a", Answer(404, json.dumps({"error": error}).encode()))
    assert powermean("show", "job-a").stderr == (
        "powermean: no job job-a\n`powermean list` lists the jobs.\n"
    )


def test_logs_prints_all_parts(server: ScriptedServer) -> None:
    parts = [("one\n", 4), ("two\n", 8), ("", 8)]
    answers = [{"attempt": 1, "offset": 0, "next_offset": n, "text": text} for text, n in parts]
    server.on("GET /v1/jobs/job-a/logs", *[Answer(body=json.dumps(answer).encode()) for answer in answers])
    assert powermean("logs", "job-a").stdout == "one\ntwo\n"
    assert powermean("logs", "job-a", "--node-rank", "1").exit_code == 0
    assert "node_rank=1" in server.requests[-1][0]
    server.on("GET /v1/jobs/job-a/logs", Answer(body=json.dumps(answers[-1]).encode()))
    assert powermean("logs", "job-a").stderr == "The log is empty.\n"


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
    code = {"code": "abc", "url": "https://lab.example.org/login/abc", "expires_at": "2026-01-01T00:00:00Z"}
    server.on("POST /v1/login-codes", Answer(body=json.dumps(code).encode()))
    assert powermean("login").stdout.startswith("https://lab.example.org/login/abc\n")


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
