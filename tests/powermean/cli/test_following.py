"""What `watch`, `submit --watch` and `demo` show of a run, on a terminal and in a file."""

import json
from collections.abc import Iterator

import pytest

from powermean import Client
from powermean.cli.following import follow
from powermean.contracts.api import JobState, JobSummary
from powermean.contracts.health import Finding, JobHealth
from tests.support.sample_jobs import job
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.terminal import terminal

SUMMARY = {"include": set(JobSummary.model_fields), "mode": "json"}

CLIPPING = Finding(
    code="clipping", level="watch", message="12 % of tokens [b]\x1b[5mclipped", remedy="Lower x."
)
SPREAD = Finding(code="no_spread", level="bad", message="95 % of groups had equal rewards")
HEALTH = JobHealth(level="bad", first_step=1, last_step=2, findings=(SPREAD, CLIPPING))


def rows(step: int) -> dict[str, object]:
    values = {"reward": 0.25 * step, "time/step": 2.0, "eval/reward": 0.3 + step / 10}
    found = [{"step": step, "update": -1, "name": name, "value": value} for name, value in values.items()]
    return {"attempt": 1, "rows": [*found, {"step": step, "update": 3, "name": "p/mean", "value": 0.9}]}


@pytest.fixture
def client() -> Iterator[Client]:
    """A run of two steps, the first of which is history already; it restarts before the second."""
    server = ScriptedServer()
    server.start()
    ended = job(JobState.FINISHED, seq=3, step=2)
    again = job(JobState.QUEUED, phase="restarting (1 of 3): Rank 1 was killed by SIGKILL.")
    states = [("state", one.model_dump(**SUMMARY)) for one in (again, ended)]  # type: ignore[arg-type]
    events = [states[0], ("metrics", rows(2)), states[1]]
    frames = "".join(f"id: {n}\nevent: {k}\ndata: {json.dumps(d)}\n\n" for n, (k, d) in enumerate(events, 2))
    point = {"step": 1, "update": -1, "value": 0.25}
    history = [{"name": name, "points": [point]} for name in ("reward", "time/step")]
    server.on("GET /v1/jobs/job-a/metrics", Answer(body=json.dumps({"series": history, "seq": 1}).encode()))
    server.on("GET /v1/jobs/job-a/events", Answer(body=frames.encode(), kind="text/event-stream"))
    server.on("GET /v1/jobs/job-a", Answer(body=ended.model_dump_json().encode()))
    server.on("GET /v1/jobs/job-a/health", Answer(body=HEALTH.model_dump_json().encode()))
    with Client(server.url, "k") as client:
        yield client
    server.stop()


def test_in_a_file_every_step_is_a_line(client: Client, capsys: pytest.CaptureFixture[str]) -> None:
    run = follow(client, job())
    lines = capsys.readouterr().out.splitlines()
    steps = [line for line in lines if line.startswith("step ")]
    assert [line.split("  ")[:2] for line in steps] == [
        ["step 1/2", "reward 0.25"],
        ["step 2/2", "reward 0.50"],
    ]
    assert "p 0.900" in steps[1]
    assert lines.index("queued: restarting (1 of 3): Rank 1 was killed by SIGKILL.") < lines.index(steps[1])
    assert "held-out reward 0.50 after step 2 (at most 128 problems)" in lines
    assert lines[-2:] == [
        "bad: 95 % of groups had equal rewards.",
        "watch: 12 % of tokens [b]\\u001b[5mclipped. Lower x.",
    ]
    assert run.job.state is JobState.FINISHED


def test_without_colours_a_terminal_gets_lines(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch, 120, NO_COLOR="1")
    follow(client, job())
    assert "step 2/2  reward 0.50" in screen.getvalue()
    assert "\x1b" not in screen.getvalue()


def test_on_a_terminal_the_table_ends_complete(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch, 120)
    follow(client, job())
    last = screen.getvalue().rpartition("step 2/2")[2]
    assert "held-out reward 0.50 after step 2 (at most 128 problems)" in last
    assert "0.900" in last
    assert "bad: 95 % of groups had equal rewards." in last
    assert "watch: 12 % of tokens [b]\\u001b[5mclipped. Lower x." in last
    assert "finished" in last


@pytest.mark.parametrize("columns", [30, 60, 80])
def test_a_narrow_terminal_loses_columns_but_no_digit(
    client: Client, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    screen = terminal(monkeypatch, columns)
    follow(client, job())
    last = screen.text.rpartition("ESS")[2]
    assert "…" not in last
    assert "0.50" in last
    assert "0.900" in last
    assert ("tok/s" in screen.text) == (columns == 80)
