"""Deleting, pinning, and what takes the space, from the command line."""

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from powermean.cli.main import app
from powermean.contracts.api import JobState
from powermean.contracts.storage import Collected, ProjectStorage, StorageUse, StoredThing
from tests.support.sample_jobs import job
from tests.support.sample_people import me
from tests.support.scripted_server import Answer, ScriptedServer
from tests.support.terminal import powermean


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.start()
    monkeypatch.setenv("POWERMEAN_URL", scripted.url)
    monkeypatch.setenv("POWERMEAN_API_KEY", "pm_key")
    yield scripted
    scripted.stop()


def asked(server: ScriptedServer) -> list[str]:
    return [line for line, _, _ in server.requests]


@pytest.mark.parametrize(("answer", "deleted"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_delete_asks_first(server: ScriptedServer, answer: str, deleted: bool) -> None:
    server.on("GET /v1/jobs/job-a", Answer(body=job(JobState.FINISHED).model_dump_json().encode()))
    server.on("DELETE /v1/jobs/job-a", Answer(204))
    result = CliRunner().invoke(app, ("delete", "job-a"), input=answer)
    assert ("DELETE /v1/jobs/job-a" in asked(server)) == deleted
    assert ("job-a is deleted" in result.output) == deleted
    assert (result.exit_code == 0) == deleted


def test_delete_takes_several_jobs_and_yes(server: ScriptedServer) -> None:
    for name in ("job-a", "job-b"):
        found = job(JobState.FINISHED).model_copy(update={"id": name})
        server.on(f"GET /v1/jobs/{name}", Answer(body=found.model_dump_json().encode()))
        server.on(f"DELETE /v1/jobs/{name}", Answer(204))
    assert powermean("delete", "job-a", "job-b", "--yes", "--cascade").exit_code == 0
    assert asked(server)[2:] == [f"DELETE /v1/jobs/{name}?cascade=true" for name in ("job-a", "job-b")]


@pytest.mark.parametrize(
    ("command", "request_"),
    [
        (("delete", "job-a", "7", "--yes"), "DELETE /v1/jobs/job-a/checkpoints/7"),
        (("pin", "job-a", "7"), "PUT /v1/jobs/job-a/checkpoints/7/pin"),
        (("unpin", "job-a", "7"), "DELETE /v1/jobs/job-a/checkpoints/7/pin"),
    ],
)
def test_checkpoints(server: ScriptedServer, command: tuple[str, ...], request_: str) -> None:
    server.on(request_, Answer(204))
    assert powermean("checkpoints", *command).exit_code == 0
    assert asked(server) == [request_]


def test_checkpoints_are_listed(server: ScriptedServer) -> None:
    one = b'{"step": 7, "attempt": 1, "size": 2500000, "pinned": true, "created_at": "2026-01-05T12:00:00Z"}'
    server.on("GET /v1/jobs/job-a/checkpoints", Answer(body=b'{"items": [%s]}' % one))
    row = powermean("checkpoints", "list", "job-a").output.splitlines()[1]
    assert row.split()[:5] == ["7", "1", "2.5", "MB", "pinned"]


def test_storage_shows_what_takes_the_space(server: ScriptedServer) -> None:
    found = ProjectStorage(
        project="team",
        bytes=3_000_000_000,
        limit=2_000_000_000,
        over_limit=True,
        uses=(StorageUse(kind="checkpoints", bytes=3_000_000_000, count=4),),
        largest=(
            StoredThing(
                kind="checkpoints", bytes=2_000_000_000, id="job-a", name="sorting", step=20, in_use="it runs"
            ),
            StoredThing(kind="datasets", bytes=1_000, id="ds-1", name="sums"),
        ),
    )
    server.on("GET /v1/projects/team/storage", Answer(body=found.model_dump_json().encode()))
    shown = powermean("storage", "--project", "team").output
    assert "team stores 3.0 GB of 2.0 GB: over its limit" in shown
    assert "checkpoints  2.0 GB  job-a  sorting    20  it runs" in shown
    assert "name     step  in use" in shown


def test_storage_is_of_ones_default_project(server: ScriptedServer) -> None:
    found = ProjectStorage(project="team", bytes=0, over_limit=False, uses=(), largest=())
    answers = [Answer(body=me(default_project=name).model_dump_json().encode()) for name in ("team", None)]
    server.on("GET /v1/me", *answers)
    server.on("GET /v1/projects/team/storage", Answer(body=found.model_dump_json().encode()))
    assert "team stores 0 B" in powermean("storage").output
    result = powermean("storage")
    assert result.exit_code == 1
    assert "name one with --project" in result.stderr


def test_gc_goes_through_the_whole_store(server: ScriptedServer) -> None:
    first = Collected(
        dry_run=True,
        looked_at=50,
        objects=2,
        bytes=1500,
        rows=3,
        keys=("jobs/a/x", "jobs/a/y"),
        next="jobs/a",
    )
    last = Collected(dry_run=True, looked_at=1, objects=1, bytes=500, rows=0, keys=("jobs/b/z",))
    server.on("POST /v1/gc", *(Answer(body=part.model_dump_json().encode()) for part in (first, last)))
    result = powermean("gc", "--dry-run")
    assert result.stdout.splitlines() == [
        "jobs/a/x",
        "jobs/a/y",
        "jobs/b/z",
        "would be removed: 3 of 51 objects (2.0 kB), 3 old messages",
    ]
    assert "50 objects looked at" in result.stderr
    assert asked(server) == ["POST /v1/gc?dry_run=true", "POST /v1/gc?dry_run=true&after=jobs%2Fa"]
