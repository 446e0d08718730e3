"""Quotas, the queue, GPU-hours and `top`, from the command line."""

import json
from typing import Any

import pytest

from powermean.cli import top
from powermean.client import Client
from powermean.contracts.api import JobPage, JobSummary, NodeList
from powermean.contracts.sharing import ChangedQuota, Queue, QuotaList, Usage, UsageRow
from tests.dashboard.test_dashboard_sharing import lanes, node, queued, quota
from tests.support.fake_api import NOW
from tests.support.sample_jobs import job
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.terminal import powermean, terminal


def answers(server: ScriptedServer, request: str, made: Any) -> None:
    server.on(request, Answer(body=made.model_dump_json().encode()))


def asked(server: ScriptedServer) -> list[str]:
    return [line for line, _, _ in server.requests]


def test_quotas_are_listed(server: ScriptedServer) -> None:
    answers(server, "GET /v1/quotas", QuotaList(items=(quota(), quota("language", used=1, limit=None))))
    lines = powermean("quota").output.splitlines()
    assert lines[0].split() == ["project", "GPUs", "used", "quota", "limit", "CPU", "slots", "used", "quota",
                                "limit", "weight"]  # fmt: skip
    assert lines[1].split() == ["vision", "6", "(2", "borrowed)", "4", "8", "0", "0", "none", "1.5"]
    assert lines[2].split()[:4] == ["language", "1", "4", "none"]
    one = powermean("quota", "language")
    assert "vision" not in one.output
    assert "no project archive" in powermean("quota", "archive").stderr


def test_a_change_keeps_the_rest_and_says_what_it_read(server: ScriptedServer) -> None:
    answers(server, "GET /v1/quotas", QuotaList(items=(quota(),)))
    changed = ChangedQuota(**dict(quota()), warnings=("all quotas add up to 9 GPUs, 1 more than 8",))
    answers(server, "PUT /v1/projects/vision/quota", changed)
    result = powermean("quota", "vision", "--gpus", "5", "--limit", "none")
    assert result.exit_code == 0, result.stderr
    assert json.loads(server.requests[-1][2]) == {
        "gpu_quota": 5, "gpu_limit": None, "cpu_quota": 0, "cpu_limit": None, "weight": 1.5, "version": 7
    }  # fmt: skip
    assert "1 more than 8" in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("vision", "--gpus", "9"), "gpu_quota: is above gpu_limit, which is 8"),
        (("vision", "--weight", "0"), "weight"),
        (("vision", "--limit", "many"), "--limit: 'many' is no number"),
        (("vision", "--gpus", "9", "--limit", "7"), "gpu_quota: is above gpu_limit, which is 7"),
        (("--gpus", "9"), "which project's quota?"),
    ],
)
def test_a_change_that_makes_no_sense_is_not_sent(
    server: ScriptedServer, options: tuple[str, ...], said: str
) -> None:
    answers(server, "GET /v1/quotas", QuotaList(items=(quota(),)))
    result = powermean("quota", *options)
    assert result.exit_code == 1
    assert said in result.stderr
    assert not [line for line in asked(server) if line.startswith("PUT")]


def test_the_queue_with_reasons_and_others_counted(server: ScriptedServer) -> None:
    answers(server, "GET /v1/queue", Queue(items=(queued(),), others=7, left_out=2))
    result = powermean("queue", "--project", "vision")
    assert "GET /v1/queue?project=vision&limit=100" in asked(server)
    assert "needs 2 GPUs; <b>n3</b> has 1" in result.stdout
    assert "7 jobs of other projects wait too" in result.stderr
    assert "2 jobs more" in result.stderr
    assert "Nothing to show." not in result.stderr


def test_an_empty_queue_says_so(server: ScriptedServer) -> None:
    answers(server, "GET /v1/queue", Queue(items=(), others=0))
    assert powermean("queue").stderr == "Nothing to show.\n"


def test_one_waiting_job_in_full(server: ScriptedServer) -> None:
    answers(server, "GET /v1/queue", Queue(items=(queued(),), others=1))
    said = powermean("queue", "job-q").stdout
    for words in (
        "number 3 in the queue, priority high",
        "needs 2 GPUs",
        "what would help: Ask for 1 GPU.",
        "before it: 1 job of your projects, 1 of others",
        "job-a has 20 steps left",
    ):
        assert words in said
    unknown = queued(starts_at=None, basis=None, help=None)
    server.answers["GET /v1/queue"].clear()
    answers(server, "GET /v1/queue", Queue(items=(unknown,), others=1))
    assert "when it starts is not known yet" in powermean("queue", "job-q").stdout


def test_gpu_hours_and_their_csv(server: ScriptedServer) -> None:
    row = UsageRow(key="vision", name="Vision", gpu_hours=1234.5, cpu_slot_hours=0, jobs=3)
    total = row.model_copy(update={"key": "total", "name": None})
    made = Usage(start=NOW, end=NOW, by="project", rows=(row,), total=total)
    answers(server, "GET /v1/usage", made)
    lines = powermean("usage", "--from", "2026-11-01").stdout.splitlines()
    assert lines[-2].split() == ["vision", "Vision", "1,234.50", "0.00", "3"]
    assert lines[-1].split() == ["total", "1,234.50", "0.00", "3"]
    assert "from=2026-11-01T" in asked(server)[-1]
    server.on("GET /v1/usage.csv", Answer(body=b"project,name\r\nvision,Vision\r\n", kind="text/csv"))
    assert powermean("usage", "--csv").stdout == "project,name\nvision,Vision\n"


def cluster(server: ScriptedServer, phase: str = "step 3 of 20: sampling") -> None:
    running = job(step=3, total_steps=20, last_reward=0.5, last_p=0.91, phase=phase, project="vision")
    summary = JobSummary(**{name: getattr(running, name) for name in JobSummary.model_fields})
    page = JobPage(items=(summary,)).model_dump_json().encode()
    server.on("GET /v1/jobs", Answer(body=page), Answer(body=b'{"items": []}'))
    answers(server, "GET /v1/nodes", NodeList(items=(node(),)))
    answers(server, "GET /v1/cluster/lanes", lanes())
    answers(server, "GET /v1/queue", Queue(items=(queued(),), others=7))


@pytest.mark.slow
def test_top_prints_once_where_nobody_can_watch(server: ScriptedServer) -> None:
    cluster(server, phase="sampling\x1b[31m")
    result = powermean("top")
    assert result.exit_code == 0, result.stderr
    jobs = ("1 job running", "arithmetic", "3/20", "0.5", "0.91")
    nodes = ("1 node", "3/4", "engine smol", "another project")
    for words in (*jobs, *nodes, "1 job waiting, and 7 of other projects", "<b>n3</b> has 1"):
        assert words in result.stdout
    assert "\x1b" not in result.stdout
    cluster(server)
    assert set(json.loads(powermean("top", "--json").stdout)) == {"jobs", "nodes", "lanes", "queue"}


@pytest.mark.parametrize(
    ("command", "told"),
    [
        (("priorities", "set", "urgent", "--value", "10000000"), "value: Input should be less than"),
        (("usage", "--from", "tonight"), "--from': 'tonight' is not a time. Write it like 2026-12-01"),
        (("audit", "list", "--until", "later"), "--until': 'later' is not a time"),
        (("node", "drain", "n1", "--at", "tonight"), "--at': 'tonight' is not a time. Write it like 22:00"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(server: ScriptedServer, command: tuple[str, ...], told: str) -> None:
    result = powermean(*command)
    assert isinstance(result.exception, SystemExit)  # no traceback
    assert told in result.stderr
    assert server.requests == []


@pytest.mark.slow
def test_top_goes_on_through_a_restart_of_the_server(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster(server)
    screen = terminal(monkeypatch, 100)
    looks = iter(("unavailable", "back", "over"))

    def pause(seconds: float) -> None:
        now = next(looks)
        if now == "over":
            raise KeyboardInterrupt
        server.answers["GET /v1/nodes"].clear()
        if now == "unavailable":
            server.on("GET /v1/nodes", Answer(503, b'{"error": {"code": "unavailable", "message": "later"}}'))
        else:
            answers(server, "GET /v1/nodes", NodeList(items=()))

    monkeypatch.setattr(top.time, "sleep", pause)
    with Client(server.url, "k") as client, pytest.raises(KeyboardInterrupt):
        top._follow(client, top.look(client))
    told = screen.text
    assert "no news: later" in told
    assert told.index("1 node") < told.index("no news: later") < told.rindex("0 nodes")
