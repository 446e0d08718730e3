"""Who calls is known before anything else is done for the caller."""

import json

import pytest
from starlette.types import Message

from powermean.contracts.names import SESSION_COOKIE, session_cookie
from server.routes.access import KnownCallerRoute
from server.routes.api import api_routes
from tests.support.service_driver import ADMIN_KEY, error_of, example_spec


@pytest.fixture
def kind() -> str:
    """What is seen from outside is the same on every database."""
    return "sqlite"


async def status_without_a_body(
    app, method: str, path: str, key: str | None = None, origin: bytes = b""
) -> int:
    """The answer to a request whose body must not be read."""
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json"), (b"content-length", b"2000")]
    headers += [(b"origin", origin)] if origin else []
    if key is not None:
        headers.append((b"authorization", f"Bearer {key}".encode()))
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 1),
        "http_version": "1.1",
        "root_path": "",
    }
    answers: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        answers.append(message)

    await app(scope, receive, send)
    return int(answers[0]["status"])


FOR_STRANGERS = ("/v1/sessions", "/v1/device-codes", "/v1/device-codes/claim")
WITH_BODIES = sorted(
    (method, route.path)
    for route in api_routes()
    if route.body_field is not None and route.path not in FOR_STRANGERS
    for method in route.methods
)


@pytest.mark.anyio
@pytest.mark.parametrize(("method", "path"), [*WITH_BODIES, ("POST", "/v1/datasets")])
async def test_the_body_of_a_stranger_is_not_read(service, method, path):
    for key in (None, "pm_wrong"):
        assert await status_without_a_body(service.app, method, path, key) == 401


@pytest.mark.anyio
async def test_the_body_of_somebody_who_may_not_do_it_is_not_read(service):
    assert await status_without_a_body(service.app, "PUT", "/v1/nodes/n", ADMIN_KEY) == 403


def test_every_route_knows_its_caller_first():
    assert WITH_BODIES
    assert all(isinstance(route, KnownCallerRoute) for route in api_routes())


def test_people_send_half_a_megabyte_at_most(service):
    spec = example_spec(name="x" * 600_000)
    assert service.person.post("/v1/jobs", json=spec).status_code == 413
    assert service.person.post("/v1/jobs", json=example_spec(name="x" * 400_000)).status_code == 422
    assert service.anyone.post("/v1/sessions", json={"key": "x" * 5000}).status_code == 413
    assert service.anyone.post("/login", data={"key": "x" * 5000}).status_code == 413


@pytest.mark.slow
def test_attempts_send_more(service):
    attempt = service.running()
    answer = attempt.post("logs", {"offset": 0, "text": "x" * 900_000})
    assert answer.status_code == 204


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"name": "\\ud800"}', "name: half of a surrogate pair"),
        (b'{"a": [{"\\uDFFF": 1}]}', "half of a surrogate pair"),
        (b'{"name": "\xff"}', "not UTF-8 (byte 11)"),
        (b'{"name": "\xed\xa0\x80"}', "not UTF-8 (byte 11)"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too many digits"),
        (b'{"seed": NaN}', "NaN is not JSON"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "half of a surrogate pair"),
        (b'{"name"', "JSON decode error"),
    ],
)
def test_a_body_that_is_no_text_is_refused_with_the_place(service, body, said):
    answer = service.person.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422
    assert said in error_of(answer)["message"]


def test_a_whole_surrogate_pair_is_a_character(service):
    body = json.dumps(example_spec(name="\U0001f600")).encode()
    assert b"\\ud83d" in body
    answer = service.person.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["name"] == "\U0001f600"


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8911", f"{SESSION_COOKIE}_8911"),
        ("[::1]:8911", f"{SESSION_COOKIE}_8911"),
        ("[::1]", SESSION_COOKIE),
        ("pm.example.org", SESSION_COOKIE),
    ],
)
def test_the_session_cookie_has_the_port_in_its_name(host, name):
    assert session_cookie(host) == name


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/new", "/jobs/job-a/steps/1/replays"])
async def test_a_form_of_a_stranger_is_not_read(service, path):
    assert await status_without_a_body(service.app, "POST", path, origin=b"http://127.0.0.1") == 303
