"""The clients: what they send, how they read answers and refusals, and that streams are taken up again."""

import asyncio
import hashlib
import json
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from powermean import (
    ApiError,
    AsyncClient,
    Client,
    PowermeanError,
    ServerUnreachableError,
)
from powermean import client as client_module
from powermean import connection as connection_module
from powermean.calls import FencedError
from powermean.contracts.api import JobState, SubmittedJob
from powermean.contracts.health import Finding, JobHealth
from powermean.contracts.staleness import JobStaleness
from powermean.deprecations import METHODS
from powermean.node_client import AttemptClient
from tests.support.sample_jobs import SPEC, job
from tests.support.sample_staleness import sample_staleness
from tests.support.scripted_server import Answer, ScriptedServer

JOB = job().model_dump_json().encode()
ENDED = job(JobState.FINISHED, seq=3).model_dump_json().encode()
REFUSAL = json.dumps(
    {
        "error": {
            "code": "invalid",
            "message": "The spec is not valid.",
            "fields": [{"path": "rollout.group_size", "message": "must be at least 2", "remedy": "use 8"}],
            "remedy": "See the docs.",
        }
    }
).encode()


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    scripted = ScriptedServer()
    scripted.start()
    yield scripted
    scripted.stop()


@pytest.fixture
def client(server: ScriptedServer) -> Iterator[Client]:
    with Client(server.url, "pm_key") as connected:
        yield connected


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "RETRY_S", 0.01)
    monkeypatch.setattr(client_module, "LOG_POLL_S", 0.01)
    monkeypatch.setattr(connection_module, "RETRIES_S", (0.0, 0.01))


def frame(seq: int, kind: str, data: object) -> bytes:
    return f"id: {seq}\nevent: {kind}\ndata: {json.dumps(data)}\n\n".encode()


def state(seq: int, value: JobState) -> bytes:
    summary = job(value).model_dump(
        mode="json", exclude={"spec", "result", "attempts", "seconds_left", "seq"}
    )
    return frame(seq, "state", summary)


def stream(*frames: bytes, cut: bool = False) -> Answer:
    return Answer(body=b": hello\n\n" + b"".join(frames), kind="text/event-stream", cut=cut)


def test_a_job_is_created_with_key_and_idempotency_key(server: ScriptedServer, client: Client) -> None:
    server.on("POST /v1/jobs", Answer(202, JOB))
    assert client.create_job(SPEC, idempotency_key="once") == SubmittedJob(**dict(job()))
    _, headers, body = server.requests[0]
    assert headers["Authorization"] == "Bearer pm_key"
    assert headers["Idempotency-Key"] == "once"
    assert json.loads(body)["training"] == {"steps": 2}


@pytest.mark.parametrize("kind", [str, Path])
def test_a_job_is_created_from_a_file(
    server: ScriptedServer, client: Client, tmp_path: Path, kind: type[str] | type[Path]
) -> None:
    server.on("POST /v1/jobs/text", Answer(202, JOB))
    file = tmp_path / "job.yaml"
    file.write_text("name: sums  # of two numbers\ntraining: {steps: 2}\n")
    client.create_job(kind(file))
    assert json.loads(server.requests[0][2]) == {"text": file.read_text()}


def test_a_file_that_is_no_spec_is_told_with_its_place(client: Client, tmp_path: Path) -> None:
    with pytest.raises(PowermeanError, match=r"nothing\.yaml: can't be read: No such file"):
        client.create_job(tmp_path / "nothing.yaml")
    file = tmp_path / "job.yaml"
    file.write_text("name: [")
    with pytest.raises(PowermeanError, match=r"job\.yaml:1:8: not YAML"):
        client.create_job(str(file))


def test_a_refusal_reads_as_message_fields_and_remedy(server: ScriptedServer, client: Client) -> None:
    server.on("POST /v1/jobs", Answer(422, REFUSAL))
    with pytest.raises(ApiError) as refused:
        client.create_job({})
    assert str(refused.value) == (
        "The spec is not valid.\n  rollout.group_size: must be at least 2 (use 8)\nSee the docs."
    )
    assert refused.value.status == 422


def test_an_answer_of_another_program_is_named_as_such(server: ScriptedServer, client: Client) -> None:
    server.on("GET /v1/jobs/job-a", Answer(502, b"<html>bad gateway</html>", "text/html"))
    with pytest.raises(ApiError, match="answered 502"):
        client.get_job("job-a")


def test_nobody_there_is_unreachable(server: ScriptedServer) -> None:
    server.stop()
    with (
        Client(server.url, "k") as client,
        pytest.raises(ServerUnreachableError, match=r"no answer from http://127"),
    ):
        client.nodes()


LOST = Answer(lost=True)


def test_a_request_that_may_be_repeated_is_sent_again_when_its_connection_is_lost(
    server: ScriptedServer, client: Client
) -> None:
    server.on("GET /v1/jobs/job-a", LOST, LOST, Answer(body=JOB))
    assert client.get_job("job-a") == job()
    server.on("POST /v1/jobs", LOST, Answer(202, JOB))
    client.create_job(SPEC)
    first, second = (headers for line, headers, _ in server.requests if line == "POST /v1/jobs")
    assert len(first["Idempotency-Key"]) == 32
    assert first["Idempotency-Key"] == second["Idempotency-Key"]
    client.create_job(SPEC)
    assert server.requests[-1][1]["Idempotency-Key"] != first["Idempotency-Key"]


def test_the_asynchronous_client_repeats_it_as_well(server: ScriptedServer) -> None:
    server.on("GET /v1/jobs/job-a", LOST, LOST, Answer(body=JOB))

    async def ask() -> object:
        async with AsyncClient(server.url, "pm_key") as client:
            return await client.get_job("job-a")

    assert asyncio.run(ask()) == job()


@pytest.mark.parametrize(("ask", "times"), [("get_job", 3), ("cancel_job", 1), ("delete_job", 1)])
def test_repetitions_have_an_end_and_other_requests_have_none(
    server: ScriptedServer, client: Client, ask: str, times: int
) -> None:
    for line in ("GET /v1/jobs/job-a", "POST /v1/jobs/job-a/cancel", "DELETE /v1/jobs/job-a"):
        server.on(line, LOST)
    with pytest.raises(ServerUnreachableError):
        getattr(client, ask)("job-a")
    assert len(server.requests) == times


def test_parameters_that_were_not_given_are_not_sent(server: ScriptedServer, client: Client) -> None:
    server.on("GET /v1/jobs/job-a/metrics", Answer(body=b'{"series": [], "seq": 0}'))
    client.metrics("job-a", ["reward", "p/mean"], from_step=2)
    assert server.requests[0][0] == "GET /v1/jobs/job-a/metrics?name=reward&name=p%2Fmean&from_step=2"


def test_ids_cannot_reach_other_paths(server: ScriptedServer, client: Client) -> None:
    server.on("GET /v1/jobs/..%2Fnodes", Answer(404, REFUSAL))
    with pytest.raises(ApiError):
        client.get_job("../nodes")


def test_events_go_on_after_a_lost_connection(server: ScriptedServer, client: Client) -> None:
    rows = {"attempt": 1, "rows": []}
    server.on(
        "GET /v1/jobs/job-a/events",
        stream(frame(1, "metrics", rows), b"id: 2\nevent: metr", cut=True),
        Answer(503, REFUSAL.replace(b"invalid", b"unavailable")),
        stream(frame(2, "metrics", rows), state(3, JobState.FINISHED)),
    )
    server.on("GET /v1/jobs/job-a", Answer(body=ENDED))
    assert [event.seq for event in client.events("job-a")] == [1, 2, 3]
    asked = [
        h["Last-Event-Id" if "Last-Event-Id" in h else "Last-Event-ID"] for _, h, _ in server.requests[:3]
    ]
    assert asked == ["0", "1", "1"]


@pytest.mark.slow
def test_a_connection_that_breaks_late_is_taken_up_again(server: ScriptedServer, client: Client) -> None:
    """However long it has lasted: the patience is for the time without a connection."""
    rows = {"attempt": 1, "rows": []}
    server.on(
        "GET /v1/jobs/job-a/events",
        stream(frame(1, "metrics", rows), cut=True),
        stream(state(2, JobState.FINISHED)),
    )
    server.on("GET /v1/jobs/job-a", Answer(body=ENDED.replace(b'"seq":3', b'"seq":2')))
    patience_s = 0.5
    seen = []
    for event in client.events("job-a", patience_s=patience_s):
        seen.append(event.seq)
        time.sleep(2 * patience_s)
    assert seen == [1, 2]


def test_events_of_an_ended_job_end(server: ScriptedServer, client: Client) -> None:
    server.on("GET /v1/jobs/job-a/events", Answer(204))
    server.on("GET /v1/jobs/job-a", Answer(body=ENDED))
    assert list(client.events("job-a", after=3)) == []


def test_events_give_up_after_their_patience(server: ScriptedServer) -> None:
    server.stop()
    with Client(server.url, "k") as client, pytest.raises(ServerUnreachableError):
        list(client.events("job-a", patience_s=0))


@pytest.mark.slow
def test_a_followed_log_goes_on_with_the_next_attempt(server: ScriptedServer, client: Client) -> None:
    first, second = job(attempt=1), job(JobState.FINISHED, attempt=2)
    answers = [Answer(body=one.model_dump_json().encode()) for one in (first, first, first, second)]
    server.on("GET /v1/jobs/job-a", *answers)
    parts = [(1, "one", 3), (1, "", 3), (1, "", 3), (2, "two", 3), (2, "", 3)]
    logs = [{"attempt": a, "offset": 0, "next_offset": n, "text": text} for a, text, n in parts]
    server.on("GET /v1/jobs/job-a/logs", *[Answer(body=json.dumps(one).encode()) for one in logs])
    assert [(part.attempt, part.text) for part in client.log("job-a", follow=True)] == [
        (1, "one"),
        (2, "two"),
    ]
    asked = [line.partition("?")[2] for line, _, _ in server.requests if "/logs" in line]
    assert asked == ["offset=0", *["attempt=1&offset=3"] * 2, "attempt=2&offset=0", "attempt=2&offset=3"]


def test_patience_counts_from_the_first_failure_after_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that was quiet for longer than that may break off all the same."""
    now = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    monkeypatch.setattr("time.sleep", lambda _: None)
    patience, lost = client_module.Patience(300), ServerUnreachableError("http://there", "gone")
    for now[0] in (1000.0, 1299.0):
        patience.bear(lost)
    patience.answered()
    for now[0] in (2000.0, 2299.0):
        patience.bear(lost)
    now[0] = 2300.0
    with pytest.raises(ServerUnreachableError):
        patience.bear(lost)


def test_a_refused_event_stream_is_an_error_at_once(server: ScriptedServer, client: Client) -> None:
    server.on("GET /v1/jobs/job-a/events", Answer(404, REFUSAL))
    with pytest.raises(ApiError):
        next(client.events("job-a"))


def test_a_download_is_whole_or_not_there(server: ScriptedServer, client: Client, tmp_path: Path) -> None:
    content = b"weights" * 1000
    file = "GET /v1/jobs/job-a/files/model.safetensors"
    server.on(file, Answer(body=content, cut=True), Answer(body=content))
    target = tmp_path / "m" / "model.safetensors"
    with pytest.raises(ServerUnreachableError):
        client.download("job-a", "model.safetensors", target)
    assert list(target.parent.iterdir()) == []
    client.download("job-a", "model.safetensors", target)
    assert hashlib.sha256(target.read_bytes()).digest() == hashlib.sha256(content).digest()


def test_a_fenced_attempt_is_its_own_error(server: ScriptedServer) -> None:
    body = b'{"error": {"code": "fenced", "message": "attempt 2 has taken over"}}'
    server.on("POST /v1/attempts/job-a.1/heartbeat", Answer(409, body))
    with AttemptClient(server.url, "job-a.1", "t") as attempt, pytest.raises(FencedError):
        attempt.heartbeat("training")


def test_a_conflict_is_not_a_fence(server: ScriptedServer) -> None:
    body = b'{"error": {"code": "conflict", "message": "no"}}'
    server.on("POST /v1/attempts/job-a.1/heartbeat", Answer(409, body))
    with AttemptClient(server.url, "job-a.1", "t") as attempt, pytest.raises(ApiError) as refused:
        attempt.heartbeat("training")
    assert not isinstance(refused.value, FencedError)


def test_one_trajectory_and_its_tokens_without_asyncio(server: ScriptedServer, client: Client) -> None:
    path = "GET /v1/jobs/job-a/trajectories/3/7"
    for request, ask in (
        (path, client.trajectory),
        (f"{path}/tokens", client.trajectory_tokens),
    ):
        server.on(request, Answer(404, REFUSAL))
        with pytest.raises(ApiError):
            ask("job-a", 3, 7)
        assert server.requests[-1][0] == request


def test_a_jobs_health_of_both_clients(server: ScriptedServer, client: Client) -> None:
    finding = Finding(code="clipping", level="watch", message="12 % of tokens clipped", remedy="Lower it.")
    found = JobHealth(level="watch", first_step=1, last_step=9, findings=(finding,))
    server.on("GET /v1/jobs/job-a/health", Answer(body=found.model_dump_json().encode()))

    async def asynchronously() -> JobHealth:
        async with AsyncClient(server.url, "pm_key") as connected:
            return await connected.health("job-a")

    assert client.health("job-a") == found == asyncio.run(asynchronously())


def test_a_jobs_staleness_of_both_clients(server: ScriptedServer, client: Client) -> None:
    found = sample_staleness()
    server.on("GET /v1/jobs/job-a/staleness", Answer(body=found.model_dump_json().encode()))

    async def asynchronously() -> JobStaleness:
        async with AsyncClient(server.url, "pm_key") as connected:
            return await connected.staleness("job-a", from_step=3, to_step=9)

    assert client.staleness("job-a", steps=5) == found == asyncio.run(asynchronously())
    asked = [request for request, *_ in server.requests]
    path = "GET /v1/jobs/job-a/staleness"
    assert asked == [f"{path}?steps=5", f"{path}?from_step=3&to_step=9"]


def test_methods_work_under_their_old_names(server: ScriptedServer, client: Client) -> None:
    found = sample_staleness()
    server.on("GET /v1/jobs/job-a/staleness", Answer(body=found.model_dump_json().encode()))

    async def asynchronously() -> JobStaleness:
        async with AsyncClient(server.url, "pm_key") as connected:
            return await connected.lag("job-a", steps=5)

    with pytest.warns(DeprecationWarning, match="lag is now staleness; the old name works until 1.0") as told:
        assert client.lag("job-a", steps=5) == found
    assert told[0].filename == __file__
    with pytest.warns(DeprecationWarning, match="lag is now staleness"):
        assert asyncio.run(asynchronously()) == found
    assert {one.old for one in METHODS} == {"lag"}


def test_certificates_are_read_once_for_all_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[ssl.SSLContext] = []
    made = ssl.create_default_context

    def counted(**options: str) -> ssl.SSLContext:
        contexts.append(made(**options))
        return contexts[-1]

    monkeypatch.setattr(ssl, "create_default_context", counted)
    connection_module.certificates.cache_clear()
    for _ in range(2):
        Client("http://127.0.0.1:1", "key").close()
        asyncio.run(AsyncClient("http://127.0.0.1:1", "key").close())
    assert len(contexts) == 1
