"""Another project's things answer as what does not exist: everywhere, to the byte."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fastapi.routing import APIRoute
from httpx import Response
from sqlalchemy import event
from starlette.testclient import TestClient

from server.identity import recent
from server.routes.access import Requires
from tests.support.service_driver import ServiceDriver, error_of, example_spec

HERE = {"Origin": "http://127.0.0.1"}
NAMES = {"job_id": "job-00000000000000000", "dataset_id": "ds-000000000000000000000000", "project": "no-such"}
VALUES = {"step": "1", "index": "0"}
SECRET = "treasure of theirs"  # in every name that another project gives


@pytest.fixture
def theirs(service: ServiceDriver) -> dict[str, str]:
    """A job that runs on the only node, a dataset and a project, none of them the caller's."""
    for name in ("ours", "theirs"):
        service.project(name)
    running = service.running(project="theirs", name=SECRET)
    row = b'{"question": "of theirs", "answer": "1"}'
    made = service.person.post("/v1/datasets", params={"project": "theirs", "name": SECRET}, content=row)
    return {"job_id": running.claim.job_id, "dataset_id": made.json()["id"], "project": "theirs"}


@pytest.fixture
def ada(service: ServiceDriver) -> TestClient:
    """A maintainer of `ours`."""
    return service.someone("maintainer", project=service.project("ours"))


def browser_of(service: ServiceDriver, client: TestClient) -> TestClient:
    browser = service.client("none")
    del browser.headers["Authorization"]
    code = client.post("/v1/login-codes").json()["code"]
    assert browser.post("/v1/sessions", json={"code": code}, headers=HERE).status_code == 201
    return browser


def routes(service: ServiceDriver) -> Iterator[tuple[str, str]]:
    """Method and path of every route for people that names something of a project."""
    for route in service.app.routes:
        if not isinstance(route, APIRoute) or not any(f"{{{name}}}" in route.path for name in NAMES):
            continue
        if any(isinstance(one.call, Requires) for one in around(route.dependant)):
            yield from ((method, route.path) for method in sorted(route.methods))


def around(dependant):
    yield dependant
    for inner in dependant.dependencies:
        yield from around(inner)


def filled(path: str, ids: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)(:path)?\}", lambda part: (ids | VALUES).get(part[1], "x"), path)


@contextmanager
def statements(service: ServiceDriver) -> Iterator[list[str]]:
    """The database's statements meanwhile: what an answer's time depends on."""
    made: list[str] = []

    def note(_connection: object, _cursor: object, statement: str, *_rest: object) -> None:
        made.append(statement)

    event.listen(service.database.engine, "before_cursor_execute", note)
    yield made
    event.remove(service.database.engine, "before_cursor_execute", note)


def told(answer: Response, ids: dict[str, str]) -> tuple[object, ...]:
    """All of an answer that can be observed, without the ids that the caller sent."""
    text = answer.text
    for name, value in ids.items():
        text = text.replace(value, name)
    headers = {k: v for k, v in answer.headers.items() if k not in ("x-request-id", "content-length")}
    return answer.status_code, text, headers


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_what_others_own_answers_as_what_does_not_exist(service: ServiceDriver, theirs, ada, monkeypatch):
    monkeypatch.setattr(recent, "REMEMBERED_S", 0.0)  # one of a pair might find its caller in memory
    ada.get("/v1/me")  # writes down that the key was used, which is due once in some minutes
    asked = {"If-None-Match": "*", "Range": "bytes=0-1", "Last-Event-ID": "1", "Idempotency-Key": "k"}
    cases = 0
    for method, path in routes(service):
        for body in (None, {"role": "viewer", "title": "x", "step": 1}, {"wrong": 1}):
            for headers in ({}, asked):
                seen = []
                for ids in (theirs, NAMES):
                    with statements(service) as asked_for:
                        answer = ada.request(method, filled(path, ids), json=body, headers=headers)
                    seen.append((told(answer, ids), asked_for))
                assert seen[0] == seen[1], f"{method} {path}"
                assert answer.status_code == 404, f"{method} {path}"
                cases += 1
    assert cases > 150


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite"], indirect=True)
def test_pages_and_their_parts_tell_nothing_either(service: ServiceDriver, theirs, ada):
    browser = browser_of(service, ada)
    pages = [route.path for route in dashboard_of(service).routes if "{job_id}" in route.path]
    assert len(pages) > 10
    values = {"part": "status", "group": "0", "replay_id": "replay-x"}
    for path in (*pages, "/new?from={job_id}"):
        for headers in ({}, {"HX-Request": "true"}):
            theirs_, missing = (
                told(browser.get(filled(path, ids | values), headers=headers), ids) for ids in (theirs, NAMES)
            )
            assert theirs_ == missing, path
    for path in ("/", "/?name=treasure", "/?sort=owner", "/?state=running", "/cluster", "/new"):
        for headers in ({}, {"HX-Request": "true"}):
            page = browser.get(path, headers=headers)
            assert page.status_code == 200, path
            assert SECRET not in page.text
            assert theirs["job_id"] not in page.text


def dashboard_of(service: ServiceDriver):
    return service.app.router.default._dashboard


def test_a_replay_or_dataset_is_not_reached_through_ones_own_job(service: ServiceDriver, theirs, ada):
    mine = ada.post("/v1/jobs", json=example_spec()).json()["id"]
    for path in (f"/v1/jobs/{mine}/replays/replay-x", f"/v1/jobs/{mine}/replays/replay-x/result"):
        assert ada.get(path).status_code == 404
    for dataset in (theirs["dataset_id"], NAMES["dataset_id"]):
        spec = example_spec(data={"kind": "jsonl", "dataset": dataset})
        assert error_of(ada.post("/v1/jobs", json=spec))["message"] == f"data.dataset: no dataset {dataset}"


@pytest.mark.slow
def test_what_waits_says_nothing_of_whom_it_waits_for(service: ServiceDriver, theirs, ada):
    mine = ada.post("/v1/jobs", json=example_spec()).json()["id"]
    service.validate(mine)
    service.scheduler.turn()
    for path in (f"/v1/jobs/{mine}", "/v1/jobs", "/v1/nodes", "/v1/engines"):
        text = ada.get(path).text
        assert SECRET not in text, path
        assert theirs["job_id"] not in text, path
        assert "theirs" not in text, path
    assert ada.get("/metrics").status_code == 403


# --- names that look like others, and addresses that are others'


@pytest.mark.parametrize(
    "name", ["d\u0435fault", "Ours", "ours\n", "ours\u200b", " ours", "..", "a/b", "%2e%2e", "x" * 64, ""]
)
def test_no_project_looks_like_another(service: ServiceDriver, name):
    assert service.person.post("/v1/projects", json={"name": name}).status_code == 422


@pytest.mark.parametrize(
    "address",
    ["\u0430da@example.org", "\u212aate@example.org", "ada@ex\u0430mple.org", "a\u200bda@example.org", "ada"],
)
def test_no_address_looks_like_another(service: ServiceDriver, address):
    wanted = {"name": "x", "email": address}
    assert service.person.post("/v1/people", json=wanted).status_code == 422


def test_an_address_with_spaces_around_it_is_the_same_one(service: ServiceDriver):
    for address, status in (("ada@example.org", 201), (" ADA@example.org\n", 409)):
        wanted = {"name": "x", "email": address}
        assert service.person.post("/v1/people", json=wanted).status_code == status


@pytest.mark.parametrize("host", ["evil.example.org", "127.0.0.1.evil.example.org", "evil:8700", ""])
def test_a_name_that_is_bound_to_this_address_reaches_nothing(service: ServiceDriver, ada, host):
    """DNS rebinding: the browser of a signed-in person takes our address for another site's."""
    browser = browser_of(service, ada)
    for path in ("/", "/login", "/v1/jobs", "/v1/me", "/healthz", "/static/style.css"):
        answer = browser.get(path, headers={"Host": host})
        assert answer.status_code == 400, path
    code = ada.post("/v1/login-codes").json()["code"]
    theirs = {"Host": host, "Origin": f"http://{host}"}
    assert browser.post("/v1/sessions", json={"code": code}, headers=theirs).status_code == 400
    assert browser.post(f"/login/{code}", headers=theirs).status_code == 400


def test_a_models_file_name_stays_within_its_header(service: ServiceDriver):
    attempt = service.running()
    name = 'a"; filename=evil.html; x="\u202e'
    owner = f"jobs/{attempt.claim.job_id}/model"
    ref = {"key": f"{owner}/x", "sha256": "0" * 64, "size": 1}
    result = {
        "steps": 20,
        "reward_before": 0,
        "reward_after": 1,
        "tokens": 1,
        "model": {"files": {name: ref}},
    }
    assert attempt.finish("finished", result=result).status_code == 204
    store = service.app.state.artefacts
    target = store.folder / owner / "x"
    target.parent.mkdir(parents=True)
    target.write_bytes(b"x")
    header = service.person.get(f"/v1/jobs/{attempt.claim.job_id}/files/{name}").headers[
        "content-disposition"
    ]
    assert re.fullmatch(r"attachment; filename\*=UTF-8''[\w%.-]+", header)
