"""Which job a command is about: an id, or a name that one job has."""

import pytest

from powermean.contracts.api import JobState
from tests.support.sample_jobs import job, summaries
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.terminal import powermean


def test_a_name_stands_for_the_only_job_that_has_it(server: ScriptedServer) -> None:
    page = summaries(job(id="job-b", name="sum"), job(id="job-c", name="sums"))
    server.on("GET /v1/jobs", Answer(body=page))
    server.on("GET /v1/jobs/job-b", Answer(body=job(id="job-b", name="sum").model_dump_json().encode()))
    assert "job-b  sum" in powermean("show", "sum").stdout
    assert server.requests[0][0] == "GET /v1/jobs?name=sum&limit=200"


def test_a_name_that_several_jobs_have_is_refused_with_their_ids(server: ScriptedServer) -> None:
    server.on("GET /v1/jobs", Answer(body=summaries(job(id="job-b"), job(JobState.FAILED, id="job-c"))))
    result = powermean("cancel", "arithmetic")
    assert result.exit_code == 1
    assert [line.split()[:2] for line in result.stderr.splitlines()[1:-1]] == [
        ["job-b", "running"],
        ["job-c", "failed"],
    ]
    assert [request for request, _, _ in server.requests] == ["GET /v1/jobs?name=arithmetic&limit=200"]


@pytest.mark.parametrize(
    "command",
    [(c,) for c in ("show", "watch", "cancel", "pause", "resume", "logs", "staleness", "download")]
    + [("replay", "--step", "1"), ("priority", "high")],
)
def test_every_command_about_a_job_takes_its_name(server: ScriptedServer, command: tuple[str, ...]) -> None:
    server.on("GET /v1/jobs", Answer(body=summaries()))
    result = powermean(command[0], "no such name", *command[1:])
    assert result.exit_code == 1
    assert result.stderr == "powermean: no job is called 'no such name'\n`powermean list` lists the jobs.\n"
