"""What every request passes: names, sizes, headers, and the one shape of errors."""

import asyncio
import logging
from collections.abc import Sequence

import pytest
from fastapi import FastAPI, HTTPException
from psycopg.errors import LockNotAvailable, QueryCanceled
from pydantic import BaseModel
from sqlalchemy.exc import OperationalError
from starlette.requests import Request
from starlette.testclient import TestClient

from powermean.artefacts import ArtefactCorruptError, ArtefactMissingError, ArtefactStoreFullError
from server.connections import Connections
from server.db.session import DatabaseBusyError
from server.error_handlers import install_error_handlers
from server.errors import ConflictError, FencedError, UnauthenticatedError
from server.middleware import Gate
from tests.support.service_driver import ServiceDriver, error_of, example_spec

on_sqlite = pytest.mark.parametrize("kind", ["sqlite"], indirect=True)


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1", True),
        ("127.0.0.1:8700", True),
        ("LOCALHOST:8700", True),
        ("[::1]:8700", True),
        ("powermean.example.org", True),
        ("evil.example.org", False),
        ("powermean.example.org.evil.com", False),
        ("127.0.0.1.evil.com", False),
        ("", False),
        ("localhost@evil.com", False),
    ],
)
def test_a_server_answers_to_its_own_names(host, allowed):
    own = ("127.0.0.1", "localhost", "[::1]", "powermean.example.org")
    answer = TestClient(small_app(hosts=own)).post("/echo", json={"n": 1}, headers={"Host": host})
    assert answer.status_code == (200 if allowed else 400)
    assert allowed or error_of(answer)["code"] == "host_not_allowed"


@on_sqlite
def test_unknown_paths_and_methods(service: ServiceDriver):
    missing = service.person.get("/v1/nothing")
    assert (missing.status_code, error_of(missing)["code"]) == (404, "not_found")
    wrong = service.person.put("/v1/jobs", json={})
    assert (wrong.status_code, error_of(wrong)["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"]


@on_sqlite
def test_every_answer_carries_its_name_and_the_security_headers(service: ServiceDriver):
    for answer in (
        service.person.get("/v1/jobs"),
        service.anyone.get("/v1/jobs"),
        service.anyone.get("/login"),
        service.anyone.get("/healthz", headers={"Host": "evil.example.org"}),
    ):
        assert answer.headers["x-request-id"]
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"
    assert service.person.get("/v1/jobs").headers["cache-control"] == "no-store"


@on_sqlite
def test_a_body_above_the_limit_is_refused(service: ServiceDriver):
    limit = service.settings.max_body
    told = service.person.post("/v1/jobs", content=b"x", headers={"Content-Length": str(limit + 1)})
    assert (told.status_code, error_of(told)["code"]) == (413, "too_large")
    nonsense = service.person.post("/v1/jobs", content=b"x", headers={"Content-Length": "-1"})
    assert nonsense.status_code == 413


def test_a_body_that_does_not_tell_its_length_is_cut_off_at_the_limit():
    app = small_app()

    def pieces():
        for _ in range(5):
            yield b"x" * 1000

    answer = TestClient(app, raise_server_exceptions=False).post(
        "/echo", content=pieces(), headers={"Content-Type": "application/json"}
    )
    assert (answer.status_code, error_of(answer)["code"]) == (413, "too_large")
    assert TestClient(app).post("/large", json={"n": 1, "text": "x" * 5000}).status_code == 200


class Message(BaseModel):
    n: int
    text: str = ""


def small_app(error: Exception | None = None, hosts: Sequence[str] = ("testserver",)) -> FastAPI:
    app = FastAPI()

    @app.get("/raise")
    def fail() -> None:
        assert error is not None
        raise error

    @app.post("/echo")
    def echo(message: Message) -> Message:
        return message

    @app.post("/large")
    def large(message: Message) -> int:
        return message.n

    install_error_handlers(app)
    open_ones = Connections(100, 10)
    app.add_middleware(
        Gate, hosts=hosts, max_body=2000, max_body_of={"/large": 10_000}, connections=open_ones
    )
    return app


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (ConflictError("no"), 409, "conflict"),
        (FencedError("no"), 409, "fenced"),
        (HTTPException(405, "no"), 405, "method_not_allowed"),
        (HTTPException(418, "no"), 418, "http_418"),
        (ArtefactMissingError("no"), 404, "artefact_missing"),
        (ArtefactStoreFullError("no"), 503, "artefact_store_full"),
        (ArtefactCorruptError("no"), 500, "artefact_corrupt"),
        (DatabaseBusyError("no"), 503, "unavailable"),
        (OperationalError("SELECT secret", {}, Exception("no")), 503, "unavailable"),
        (OperationalError("SELECT secret", {}, QueryCanceled("no")), 503, "statement_timeout"),
        (OperationalError("SELECT secret", {}, LockNotAvailable("no")), 503, "lock_timeout"),
        (RuntimeError("a secret"), 500, "internal"),
    ],
)
def test_every_failure_has_the_one_shape(error, status, code):
    answer = TestClient(small_app(error)).get("/raise")
    assert (answer.status_code, error_of(answer)["code"]) == (status, code)
    assert "secret" not in answer.text


def test_an_unexpected_error_is_found_in_the_log_by_its_name(caplog: pytest.LogCaptureFixture):
    answer = TestClient(small_app(RuntimeError("boom"))).get("/raise")
    name = answer.headers["x-request-id"]
    assert name in error_of(answer)["message"]
    record = next(record for record in caplog.records if name in record.getMessage())
    assert record.exc_info is not None


def test_an_upload_that_is_broken_off_is_one_line_of_the_log(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    messages = [
        {"type": "http.request", "body": b"{", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    async def reading(scope, receive, send):
        await Request(scope, receive).body()

    gate = Gate(reading, hosts=["localhost"], max_body=1000, max_body_of={}, connections=Connections(100, 10))
    headers = [(b"host", b"localhost")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/datasets",
        "query_string": b"",
        "headers": headers,
    }
    asyncio.run(gate(scope, receive, send))
    (record,) = caplog.records
    assert (record.levelname, record.exc_info) == ("INFO", None)
    assert "the client went away: POST /v1/datasets" in record.getMessage()
    assert sent == []


def test_who_is_not_known_is_told_how_to_be():
    answer = TestClient(small_app(UnauthenticatedError("who?"))).get("/raise")
    assert answer.headers["www-authenticate"] == "Bearer"


@on_sqlite
def test_all_wrong_fields_are_named(service: ServiceDriver):
    spec = example_spec(training={"steps": 0}, rollout={"group_size": 1}, extra=1)
    error = error_of(service.person.post("/v1/jobs", json=spec))
    by_path = {field["path"]: field for field in error["fields"]}
    assert set(by_path) == {"training.steps", "rollout.group_size", "extra"}
    assert by_path["extra"]["remedy"].startswith("Fields here: name, project, model, priority, algorithm")


@on_sqlite
def test_of_many_wrong_fields_the_first_are_named(service: ServiceDriver):
    spec = example_spec(**{f"k{number}": 1 for number in range(300)})
    error = error_of(service.person.post("/v1/jobs", json=spec))
    assert [field["path"] for field in error["fields"]] == [f"k{number}" for number in range(20)]
    assert error["message"].endswith("(and 299 more)")


@on_sqlite
@pytest.mark.parametrize("path", ["/v1/jobs/a%00b", "/v1/jobs?name=a%00b"])
def test_a_nul_character_in_an_address_is_refused(service: ServiceDriver, path):
    answer = service.person.get(path)
    assert (answer.status_code, error_of(answer)["code"]) == (400, "bad_request")


@on_sqlite
def test_a_list_where_an_object_belongs(service: ServiceDriver):
    answer = service.person.post("/v1/jobs", json=[1, 2])
    assert answer.status_code == 422
    assert error_of(answer)["fields"][0]["path"] == "body"
