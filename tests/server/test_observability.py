"""Health, readiness, numbers, and the log of requests."""

import asyncio
import json
import logging
import shutil
import sys
import threading
from pathlib import Path

import httpx
import pytest

from powermean.artefacts import ArtefactStore, ArtefactStoreFullError
from server import readiness
from server.request_log import JsonFormatter, Sparing, request_id
from tests.support.reports import post_rows, row, trajectory
from tests.support.service_driver import ADMIN_KEY, error_of, example_spec


@pytest.fixture
def kind() -> str:
    """What is seen from outside is the same on every database."""
    return "sqlite"


def sample(service, name):
    """The value of one line of /metrics."""
    text = service.person.get("/metrics").text
    return next(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"{name} "))


def test_health_needs_nothing(service):
    service.database.close()
    assert service.anyone.get("/healthz").json() == {"status": "ok"}


def test_readiness_names_what_is_wrong(service, monkeypatch):
    def full(store):
        raise ArtefactStoreFullError("no space left")

    monkeypatch.setattr(ArtefactStore, "probe", full)
    monkeypatch.setattr(readiness, "PATIENCE_S", 30.0)
    answer = service.anyone.get("/readyz")
    assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
    wrong = {one["path"]: one["message"] for one in answer.json()["wrong"]}
    assert wrong == {"redis": "does not answer", "artefacts": "can't be written (artefact_store_full)"}
    assert all(one["remedy"] for one in answer.json()["wrong"])
    assert "127.0.0.1" not in answer.text
    up = {part: sample(service, f'powermean_part_up{{part="{part}"}}') for part in ("database", *wrong)}
    assert up == {"database": 1, "redis": 0, "artefacts": 0}


def test_a_part_whose_check_breaks_off_is_named(service, monkeypatch):
    def broken(url):
        raise KeyError("of a library")

    monkeypatch.setattr(readiness, "_check_redis", broken)
    monkeypatch.setattr(readiness, "PATIENCE_S", 30.0)
    (one,) = service.anyone.get("/readyz").json()["wrong"]
    assert (one["path"], one["message"]) == ("redis", "can't be checked")


def test_readiness_is_checked_at_most_every_two_seconds(service, monkeypatch):
    checks = []
    monkeypatch.setattr(ArtefactStore, "probe", lambda store: checks.append(1))
    monkeypatch.setattr(readiness, "_check_redis", lambda url: None)
    assert [service.anyone.get("/readyz").status_code for _ in range(3)] == [200] * 3
    assert len(checks) == 1


@pytest.mark.slow
@pytest.mark.anyio
async def test_a_part_that_hangs_holds_up_nobody(service, monkeypatch):
    asked, thawed = [], threading.Event()

    def frozen(url):
        asked.append(url)
        thawed.wait(30)

    monkeypatch.setattr(readiness, "_check_redis", frozen)
    monkeypatch.setattr(readiness, "CHECKS_TIMEOUT_S", 1.0)
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.2)
    monkeypatch.setattr(readiness, "READINESS_S", 0.0)
    transport = httpx.ASGITransport(app=service.app)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as anyone:
            waiting = [asyncio.create_task(anyone.get("/readyz")) for _ in range(60)]
            await asyncio.sleep(0.1)
            jobs = await anyone.get("/v1/jobs", headers={"Authorization": f"Bearer {ADMIN_KEY}"})
            assert jobs.status_code == 200
            for answer in await asyncio.gather(*waiting):
                assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
                assert [one["path"] for one in answer.json()["wrong"]] == ["redis"]
            async with asyncio.timeout(20):
                while (await anyone.get("/readyz")).json()["wrong"][0]["message"] != "does not answer":
                    pass
        assert len(asked) == 1
    finally:
        thawed.set()


def test_a_database_whose_file_was_moved_takes_nothing(service, monkeypatch):
    monkeypatch.setattr(readiness, "_check_redis", lambda url: None)
    monkeypatch.setattr(readiness, "READINESS_S", -1.0)
    file = Path(service.database.engine.url.database)
    away = file.with_suffix(".away")
    before = service.submit()
    for put in (lambda: None, lambda: shutil.copy(away, file)):
        file.rename(away)
        put()
        refused = service.person.post("/v1/jobs", json=example_spec())
        assert (refused.status_code, error_of(refused)["code"]) == (503, "unavailable")
        ready = service.anyone.get("/readyz")
        assert ready.status_code == 503
        assert error_of(ready)["fields"][0]["message"] == "its file was moved or replaced"
        away.rename(file)
    assert service.anyone.get("/readyz").status_code == 200
    after = service.submit()
    assert {job["id"] for job in service.person.get("/v1/jobs").json()["items"]} == {before, after}


def test_numbers_for_prometheus(service):
    attempt = service.running()
    post_rows(attempt, row(1), row(2))
    attempt.post("trajectories", {"step": 1, "rows": [trajectory(0)]})
    assert sample(service, 'powermean_jobs{state="running"}') == 1
    assert sample(service, 'powermean_jobs{state="failed"}') == 0
    assert sample(service, "powermean_nodes_alive") == 1
    assert sample(service, "powermean_event_streams") == 0
    assert sample(service, 'powermean_ingested_rows_total{kind="metrics"}') == 2
    assert sample(service, 'powermean_ingested_rows_total{kind="trajectories"}') == 1
    route = 'method="POST",route="/v1/attempts/{attempt_id}/metrics",status="204"'
    assert sample(service, f"powermean_request_seconds_count{{{route}}}") == 1


def test_paths_that_are_no_route_make_one_series(service):
    for path in ("/v1/nope", "/v1/nope/2"):
        service.person.get(path)
    assert sample(service, 'powermean_request_seconds_count{method="GET",route="none",status="404"}') == 2


def test_invented_methods_make_one_series(service):
    for number in range(50):
        assert service.person.request(f"M{number}", "/v1/jobs").status_code == 405
    assert 'method="M' not in service.person.get("/metrics").text
    series = 'powermean_request_seconds_count{method="other",route="/v1/jobs",status="405"}'
    assert sample(service, series) == 50


def test_warnings_of_a_kind_are_few_and_say_how_many_they_stand_for(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("server.request_log.time.monotonic", lambda: now[0])
    sparing = Sparing(most=3, window_s=60)

    def said(message, *args, level=logging.WARNING):
        record = logging.LogRecord("x", level, "f", 1, message, args, None)
        return record.getMessage() if sparing.filter(record) else None

    assert [said("refused %d", n) for n in range(5)] == ["refused 0", "refused 1", "refused 2", None, None]
    assert said("another") == "another"
    assert all(said("GET", level=logging.INFO) for _ in range(10))
    now[0] = 61.0
    assert said("refused %d", 5) == "refused 5 (2 more like it were left out)"
    assert said("refused %d", 6) == "refused 6"


def test_requests_are_logged_with_their_id(service, caplog):
    caplog.set_level(logging.INFO, logger="server.request_log")
    seen = []
    caplog.handler.addFilter(lambda record: seen.append(json.loads(JsonFormatter().format(record))) or True)
    answer = service.person.get("/v1/nodes")
    (line,) = [line for line in seen if line["logger"] == "server.request_log"]
    assert line["message"] == "GET /v1/nodes 200"
    assert line["request_id"] == answer.headers["x-request-id"]
    assert line["status"] == 200
    assert line["ms"] > 0
    assert request_id.get() is None


def test_an_exception_is_one_line_of_json():
    try:
        raise ValueError("bad\nvalue")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed %d", (3,), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    assert json.loads(text)["message"] == "failed 3"
    assert "ValueError" in json.loads(text)["exception"]


def test_no_value_in_a_line_begins_another_or_reaches_a_terminal():
    name = "a\r\n\x1b[2J\x7f\x85\x9b2J\u2028\u202e\u2066"
    record = logging.makeLogRecord({"msg": "refused the worker on host %s", "args": (name,)})
    line = JsonFormatter().format(record)
    assert line.isascii()
    assert line.replace("\x7f", "").isprintable()
    assert name in json.loads(line)["message"]
